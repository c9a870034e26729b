"""What can be configured in image–text training and in the clustering of texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from visual_search.common.ranges import (
    Amount,
    Batch,
    Count,
    CountFrom1,
    CountOrAll,
    Positive,
    Range,
    Seed,
    Share,
    ShareBelow1,
    Side,
    SideOr0,
    WidthFrom1,
    Workers,
)
from visual_search.common.unused import Unless, When
from visual_search.config import (
    BackboneConfig,
    EmbedSettings,
    OptimConfig,
    TrainConfig,
)

_LEARNT = When("towers", "open_clip/", "clip/", "hf/")
_FROZEN = When("towers", "use", "sentence-transformers/")


@dataclass(frozen=True)
class PairSamplerConfig:
    """Which images meet in a batch; those of one product are spread over the epoch.

    Args:
        kind: shuffle; hard-negatives fills a part of each batch from one cluster of texts, and
            needs a table with clusters.
        hard_share: of hard-negatives, share of a batch that is of one cluster.
        cluster_power: of earlier versions.
    """

    kind: Literal["shuffle", "hard-negatives"] = "shuffle"
    hard_share: Annotated[Share, When("kind", "hard-negatives")] = 0.5
    cluster_power: Annotated[Amount, When("")] = 0.5


@dataclass(frozen=True)
class PairDataConfig:
    """Images with the queries they were chosen for.

    Args:
        pairs: table of pairs (parquet); its rows of the split train are trained on, those of
            test are ranked by validation.
        root: folder its paths are relative to; empty is the table's own.
        text_column: queries, as typed, or texts, cleaned.
        test_language: ISO 639-1: of the test images, only queries in it are asked; empty: all.
        queries_per_photo: draw takes another of an image's queries in each epoch; mean takes the
            mean of the embeddings of all.
        most_queries: of mean, at most so many of an image's queries, the first.
        seed: of every random draw of the run.
        input_size: side of the model's input in training, in pixels.
        input_size_valid: the same in validation and afterwards; 0 is as in training.
        batch_size: images a step and process, the negatives of each other.
        cached_views: above 0, embed each training image whole and in so many random crops less
            one before the first step, and train on these features, kept in train.feature_cache;
            for a frozen visual tower, and without augmentations.
        sampler: which images meet in a batch.
        augmentations: of the training images.
        random_erasing: share of the training images with an erased rectangle.
        num_workers: processes that read training images; 0 reads them in the training process.
        max_broken_share: stop when more of the images read than this share cannot be read.
        shuffle_texts: of earlier versions.
    """

    pairs: str = "dataset/demo_text/pairs.parquet"
    root: str = ""
    text_column: Literal["queries", "texts"] = "queries"
    test_language: str = ""
    queries_per_photo: Literal["draw", "mean"] = "draw"
    most_queries: Annotated[CountFrom1, When("queries_per_photo", "mean")] = 8
    seed: Seed = 42
    input_size: Side = 224
    input_size_valid: SideOr0 = 0
    batch_size: Batch = 256
    cached_views: Count = 0
    sampler: PairSamplerConfig = field(default_factory=PairSamplerConfig)
    augmentations: Literal[
        "none", "default", "flip", "plain", "autoaugment", "randaugment", "trivialaugment", "phone"
    ] = "plain"
    random_erasing: Share = 0.0
    num_workers: Annotated[Workers, Unless("cached_views")] = 8
    max_broken_share: Share = 0.05
    shuffle_texts: Annotated[Literal[False], When("")] = False


@dataclass(frozen=True)
class TextConfig:
    """The network that reads the query.

    Args:
        towers: one or several, whose outputs stand side by side: hashed, use,
            sentence-transformers/<name or folder>, open_clip/<architecture>[/<tag>],
            clip/<folder>, hf/<name or folder>.
        weights: of open_clip, clip and hf towers: hub (a folder's own, where it is one), none
            (random), or a state-dict file.
        trainable_blocks: how many blocks from the end are trained; -1 all, 0 none.
        train_embeddings: train the token embeddings too; those of hashed n-grams as well.
        tokens: the longest query, in tokens; what is longer is cut.
        pooling: of hf towers: mean of the tokens, first (BERT), last (GPT), or end: of a token
            behind the text, with another before it, as ru-CLIP's GPT.
        buckets: of hashed, rows of its table of n-grams.
        dimension: of hashed, width of its table.
        noise: Gaussian noise on the features of frozen encoders in training, in units of their
            standard deviation.
        dropout: share of these features dropped in training.
    """

    towers: tuple[str, ...] = ("hashed",)
    weights: Annotated[str, _LEARNT] = "none"
    trainable_blocks: Annotated[CountOrAll, _LEARNT] = -1
    train_embeddings: Annotated[bool, When("towers", "hashed", "open_clip/", "clip/", "hf/")] = True
    tokens: Annotated[WidthFrom1, _LEARNT] = 77
    pooling: Annotated[Literal["mean", "first", "last", "end"], When("towers", "hf/")] = "mean"
    buckets: Annotated[CountFrom1, When("towers", "hashed")] = 20000
    dimension: Annotated[WidthFrom1, When("towers", "hashed")] = 256
    noise: Annotated[Amount, _FROZEN] = 0.0
    dropout: Annotated[ShareBelow1, _FROZEN] = 0.0


@dataclass(frozen=True)
class ProjectionConfig:
    """From both towers into the space they share.

    Args:
        kind: linear; residual: a block (linear, quick-GELU, linear, dropout,
            residual, LayerNorm); ru-clip: such a block without bias, on the visual tower's features
            at the length they have; none: both towers give the shared space, as those of one CLIP.
        dimension: of the shared space.
        dropout: inside residual.
        clusters: above 1, a text projection for each cluster of texts, chosen by a classifier
            that is trained with them; needs a table with clusters.
        cluster_classifier: linear, on the text tower's features; transformer, a block of its own
            over the tokens and a linear layer, beside the text tower.
        initial: random; ridge starts images where a ridge regression predicts the features of
            their texts, and texts at these features.
        ridge_alpha: of initial ridge, its strength, for unit vectors of the images.
        class_names: start from the visual tower's own classifier: imagenet adds, beside its
            features, the mean of the names of the classes that it sees; needs the tower `use`.
        sharpness: of class_names, factor of the classifier's cosine before the softmax.
        feature_noise: Gaussian noise on the image's features in training, in units of their
            standard deviation.
        feature_dropout: share of the image's features dropped in training.
    """

    kind: Literal["linear", "residual", "ru-clip", "none"] = "linear"
    dimension: WidthFrom1 = 512
    dropout: Annotated[ShareBelow1, When("kind", "residual", "ru-clip")] = 0.5
    clusters: CountFrom1 = 1
    cluster_classifier: Annotated[Literal["linear", "transformer"], Unless("clusters", 1)] = (
        "linear"
    )
    initial: Annotated[Literal["random", "ridge"], Unless(".pretrain_model")] = "random"
    ridge_alpha: Annotated[Positive, When("initial", "ridge"), Unless(".pretrain_model")] = 1.0
    class_names: Literal["none", "imagenet"] = "none"
    sharpness: Annotated[Positive, When("class_names")] = 10.0
    feature_noise: Amount = 0.0
    feature_dropout: ShareBelow1 = 0.0


@dataclass(frozen=True)
class ContrastiveConfig:
    """The loss over all images and texts of the batch, of all processes together.

    Args:
        name: infonce, as of CLIP.
        temperature: at the start, 0.01 or more; the scale of the cosines is 1 / temperature.
        learn_temperature: train it.
        label_smoothing: share of the target given to all alike.
        cluster_weight: of the cluster classifier's cross-entropy; the sum is divided by the
            sum of the weights of its three parts.
        chunk: images whose activations are held at once; a batch of any size then needs the
            memory of a chunk and a second forward pass. 0 holds the whole batch.
    """

    name: Literal["infonce"] = "infonce"
    temperature: Annotated[float, Range(0.01)] = 0.07
    learn_temperature: bool = True
    label_smoothing: Share = 0.0
    cluster_weight: Annotated[Amount, Unless("projection.clusters", 1)] = 1.0
    chunk: Count = 0


@dataclass(frozen=True)
class ClipConfig:
    """One phase of image–text training.

    Args:
        dataset: images with queries.
        backbone: the visual tower.
        text: the text tower.
        projection: into the shared space.
        loss: over the batch.
        optim: optimiser and schedule; backbone_lr_ratio is of both towers.
        train: the loop.
        embedding: how images are embedded in validation and afterwards.
        pretrain_model: to start from: run folder of the phase before, or a folder of ru-CLIP's
            first release (ViT-B32-small.pt beside the files of its GPT).
    """

    dataset: PairDataConfig = field(default_factory=PairDataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    text: TextConfig = field(default_factory=TextConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    loss: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    embedding: EmbedSettings = field(default_factory=EmbedSettings)
    pretrain_model: str | None = None


@dataclass(frozen=True)
class ClusterConfig:
    """How texts are clustered.

    Args:
        ngram: words of an n-gram; shorter texts count as a whole.
        max_ngrams: the most frequent so many are clustered.
        encoder: of the n-grams; see :mod:`visual_search.text.sentence_encoders`.
        clusters: how many.
        connectivity: only n-grams that are among each other's so many nearest are joined, which
            needs far less memory; 0: any.
        neighbours: of a new text that vote on its cluster.
        hold_out: share of the n-grams that the vote is measured on.
        seed: of the hold-out, and of samples.
    """

    ngram: CountFrom1 = 3
    max_ngrams: CountFrom1 = 20_000
    encoder: str = "use"
    clusters: Annotated[int, Range(2)] = 10
    connectivity: Count = 0
    neighbours: CountFrom1 = 4
    hold_out: ShareBelow1 = 0.1
    seed: Seed = 42
