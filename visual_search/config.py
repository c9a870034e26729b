"""What can be configured: frozen dataclasses with their defaults. `config_reader` fills them.

Their docstrings are what --help shows; ranges stand in the annotations of their fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from visual_search.common.embed_settings import EmbedSettings as EmbedSettings
from visual_search.common.ranges import (
    Amount,
    Angle,
    Count,
    CountFrom1,
    Positive,
    Range,
    Seed,
    Share,
    ShareAbove0,
    ShareBelow1,
)

CountOrAll = Annotated[int, Range(-1)]
Side = Annotated[int, Range(1, 4096)]
SideOr0 = Annotated[int, Range(0, 4096)]


@dataclass(frozen=True)
class Product10KConfig:
    """Where Product10K, or a data set in its layout, lies.

    Args:
        use: train on it; false leaves the other tables.
        train_valid_root: folder of the lists and of the image folders.
        train_prefix: folder of the training images.
        train_list: csv with the columns name, class.
        val_prefix: folder of the test images.
        val_list: csv of the test images, with the same columns.
        weight: how often an image is drawn in an epoch; 1 is once, 0.5 every second epoch.
        more_than: a class needs more images than this; 0 takes all.
        at_most: images of a class, drawn at random; 0 takes all.
    """

    use: bool = True
    train_valid_root: str = "dataset/Product10K"
    train_prefix: str = "train"
    train_list: str = "train.csv"
    val_prefix: str = "test"
    val_list: str = "test_kaggletest.csv"
    weight: Positive = 1.0
    more_than: Count = 0
    at_most: Count = 0


@dataclass(frozen=True)
class TableConfig:
    """A further table of training images; its classes are numbered behind the others'.

    Args:
        file: csv: Amazon pairs (image_path, label), dataset_info.csv or folds.csv.
        root: folder its paths are relative to; empty is the csv's own.
        fold: of a folds.csv, the fold that is held out; -1 holds none out.
        weight: how often an image is drawn in an epoch; 1 is once, 0.5 every second epoch.
        more_than: a class needs more images than this; 0 takes all.
        at_most: images of a class, drawn at random; 0 takes all.
    """

    file: str
    root: str = ""
    fold: CountOrAll = -1
    weight: Positive = 1.0
    more_than: Count = 0
    at_most: Count = 0


@dataclass(frozen=True)
class DevSetConfig:
    """The development set that validation ranks: in the challenge's layout, or a table.

    Args:
        eval_root: folder that the image paths of both tables are relative to.
        gallery: csv with the columns seller_img_id, img_path, product_id.
        queries: csv with the columns user_img_id, img_path, bbox_x, …, bbox_h, product_id.
        table: instead of these, a dataset_info.csv or folds.csv, of which the held-out rows are
            ranked: queries against gallery where evaluation_status says so, else each image
            against all others.
        root: folder that the table's paths are relative to; empty is its own.
        fold: of a folds.csv, the fold that is held out; -1 for the rows that always test.
    """

    eval_root: str = "dataset/development_test_data"
    gallery: str = "gallery.csv"
    queries: str = "queries.csv"
    table: str = ""
    root: str = ""
    fold: CountOrAll = -1


@dataclass(frozen=True)
class SamplerConfig:
    """Which images meet in a batch.

    Args:
        kind: shuffle; m-per-class for pair losses; size-balanced draws small classes more often.
        images_per_class: of m-per-class, images of a class in a batch.
        size_power: of size-balanced, a class is drawn in proportion to its size to this power.
    """

    kind: Literal["shuffle", "m-per-class", "size-balanced"] = "shuffle"
    images_per_class: CountFrom1 = 2
    size_power: Amount = 0.5


@dataclass(frozen=True)
class MixingConfig:
    """Two images in one, with both labels.

    Args:
        kind: none, mixup (blended), cutmix (a patch of the other), or both in turn.
        alpha: of the beta distribution that the share is drawn from.
        probability: share of the batches that are mixed.
    """

    kind: Literal["none", "mixup", "cutmix", "both"] = "none"
    alpha: Positive = 0.4
    probability: Share = 1.0


@dataclass(frozen=True)
class DatasetConfig:
    """The images, and how they reach the model.

    Args:
        product10k: the training images.
        tables: further training images.
        dev_set: the images that validation ranks.
        train_on_test: train on Product10K's test images too; the run's report says so.
        seed: of every random draw of the run.
        num_of_classes: of Product10K: at least its highest class plus one.
        max_classes: train on so many classes of all data sets together, drawn at random; 0 on all.
        input_size: side of the model's input in training, in pixels.
        input_size_valid: the same in validation and in the submission; 0 is as in training.
            Convolutional networks gain from a somewhat larger one (Touvron et al. 2019).
        batch_size: images a step and process.
        sampler: which images meet in a batch.
        augmentations: of the training images.
        augmentations_valid: none, since validation is what the submission does.
        random_erasing: share of the training images with an erased rectangle.
        mixing: mixup or cutmix.
        num_workers: processes that read training images; 0 reads them in the training process.
        max_broken_share: stop when more of the images read than this share cannot be read.
    """

    product10k: Product10KConfig = field(default_factory=Product10KConfig)
    tables: tuple[TableConfig, ...] = ()
    dev_set: DevSetConfig = field(default_factory=DevSetConfig)
    train_on_test: bool = False
    seed: Seed = 42
    num_of_classes: CountFrom1 = 9700
    max_classes: Count = 0
    input_size: Side = 224
    input_size_valid: SideOr0 = 0
    batch_size: CountFrom1 = 48
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    augmentations: Literal[
        "none", "flip", "plain", "autoaugment", "randaugment", "trivialaugment", "phone"
    ] = "autoaugment"
    augmentations_valid: Literal["none"] = "none"
    random_erasing: Share = 0.0
    mixing: MixingConfig = field(default_factory=MixingConfig)
    num_workers: Count = 8
    max_broken_share: Share = 0.05


@dataclass(frozen=True)
class BackboneConfig:
    """The network that sees the image.

    Args:
        name: timm/<model>, open_clip/<architecture>/<tag>, or unicom/<model>.
        weights: hub, hub:<tag>, none, package:efficientnet_lite0, or a state-dict file.
        mean: subtracted from pixels scaled to 0..1, RGB.
        std: divides them after that, RGB.
        pooling: of the last feature map; default is the model's own.
        head_conv: keep the wide convolution in front of the pooling of EfficientNet and
            MobileNet; without it features are narrower, and less those of the pretraining's task.
        drop_path: stochastic depth rate, 0..1, for timm models that know it.
        patch_overlap: pixels that neighbouring patches of a ViT share; more tokens, finer.
        freeze_batchnorm: keep the running statistics of the pretrained batch norms.
        frozen_stages: how many stages from the stem on are not trained, for timm models; what
            they learnt serves as it is, and a step costs less.
        trainable_blocks: how many blocks from the end are trained; -1 all, 0 none (frozen).
        gradient_checkpointing: compute activations twice, keep them once: less memory.
    """

    name: str = "timm/tf_efficientnet_lite0"
    weights: str = "package:efficientnet_lite0"
    mean: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    pooling: Literal["default", "avg", "gem", "cls"] = "default"
    head_conv: bool = True
    drop_path: ShareBelow1 = 0.0
    patch_overlap: Count = 0
    freeze_batchnorm: bool = False
    frozen_stages: Count = 0
    trainable_blocks: CountOrAll = -1
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class NeckConfig:
    """Between backbone and embedding.

    Args:
        kind: none, or a projection, with dropout before and batch norm behind it or without;
            norm-linear brings the backbone's features to length 1 first.
        dimension: width of the embedding; 0 keeps the backbone's.
        dropout: of the backbone's features, for dropout-linear-bn.
        initial: where the projection starts: random, or the principal components (pca) or linear
            discriminants (lda) of the training images' features; the latter two for linear and
            norm-linear, and with train.cache_features.
        shrinkage: of lda, above 0: the more, the closer to pca.
    """

    kind: Literal["none", "linear", "norm-linear", "linear-bn", "dropout-linear-bn"] = "none"
    dimension: Count = 0
    dropout: ShareBelow1 = 0.2
    initial: Literal["random", "pca", "lda"] = "random"
    shrinkage: Positive = 2.0


@dataclass(frozen=True)
class MarginConfig:
    """The classification head: a softmax whose target has to win by a margin.

    Args:
        name: of the margin; the formulas are in visual_search/losses/margins.py.
        weight: of the head's loss; 0 leaves it to the pair losses, without a head.
        centers: sub-centres of each class; 1 is the plain form.
        scale: s, the radius of the sphere the logits live on; 0 is sqrt(2) * ln(classes - 1).
        margin: m of every class, where class_margins is none.
        m1: of combined, factor of the angle; of sphereface, 0 takes its own 1.35.
        m3: of combined, subtracted from the cosine.
        class_margins: minmax: low + span * minmax(n ** power); power: low + span * n ** power;
            n being the class's images.
        low: margin of the most frequent class (minmax) or of an endless one (power), radians.
        span: what the rarest class has above it, radians.
        power: negative; how fast the margin falls with the class's images.
        label_smoothing: share of the target given to all classes alike.
        focal_gamma: weight (1 - p) ** gamma of each image (focal loss); 0 is cross-entropy.
        grow: how the margin rises from grow_from to its full size.
        grow_from: share of the margin at the start.
        grow_share: share of the training after which the margin is full.
        sampled_share: below 1, this share of the classes enters a step (Partial FC), besides the
            batch's own; for 100,000 classes and more. The class matrix then has an optimiser of
            its own that moves these rows alone: SGD where optim.name is sgd, else AdamW.
        dropout: of the embedding in front of the head.
        imprint: start the centres at the mean embeddings of their classes, not at random.
        nested: widths of prefixes of the embedding that the head is trained on too, so that an
            embedding may be cut there (Matryoshka); all weigh alike.
        elastic_std: standard deviation of elasticface's margin.
        adaface_h: of adaface, how strongly the embedding's length moves the margin.
        curricular_momentum: of curricularface's running mean.
    """

    name: Literal[
        "softmax", "arcface", "cosface", "combined", "sphereface", "curricularface", "adaface",
        "adacos", "elasticface-arc", "elasticface-arc-plus", "elasticface-cos",
        "elasticface-cos-plus",
    ] = "arcface"  # fmt: skip
    weight: Amount = 1.0
    centers: Annotated[int, Range(1, 255)] = 3
    scale: Amount = 30.0
    margin: Angle = 0.5
    m1: Amount = 1.0
    m3: Amount = 0.0
    class_margins: Literal["none", "minmax", "power"] = "minmax"
    low: Angle = 0.05
    span: Angle = 0.45
    power: Annotated[float, Range(high=0)] = -0.25
    label_smoothing: ShareBelow1 = 0.0
    focal_gamma: Amount = 0.0
    grow: Literal["none", "linear", "log"] = "none"
    grow_from: Share = 0.0
    grow_share: Share = 1.0
    sampled_share: ShareAbove0 = 1.0
    dropout: ShareBelow1 = 0.2
    imprint: bool = False
    nested: tuple[CountFrom1, ...] = ()
    elastic_std: Amount = 0.0125
    adaface_h: Amount = 0.333
    curricular_momentum: Share = 0.01


@dataclass(frozen=True)
class PairLossConfig:
    """A loss over pairs of a batch, and of the batch with a memory of earlier batches (XBM).

    Args:
        name: contrastive, multi-similarity or soft-triple; none leaves it out.
        weight: of this loss in the sum.
        threshold: cosine below which negatives cost nothing; multi-similarity's base.
        memory: embeddings remembered, up to the size of the training set; 0 is no memory.
        memory_weight: of the pairs with the memory, against those inside the batch.
        memory_start: batches after which the memory comes into play.
    """

    name: Literal["none", "contrastive", "multi-similarity", "soft-triple"] = "none"
    weight: Amount = 1.0
    threshold: Annotated[float, Range(-1, 1)] = 0.5
    memory: Count = 0
    memory_weight: Amount = 1.0
    memory_start: Count = 0


@dataclass(frozen=True)
class DistillationConfig:
    """Another run as a teacher.

    Args:
        run: run folder, checkpoint or TorchScript export; empty for none.
        kind: mse, l1 or cosine between the embeddings; relational between the batch's
            similarities, for a teacher of another width.
        weight: of this loss in the sum.
    """

    run: str = ""
    kind: Literal["mse", "l1", "cosine", "relational"] = "cosine"
    weight: Amount = 1.0


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule. No rate is scaled by the number of processes.

    Args:
        name: of the optimiser.
        head_lr: peak learning rate of head and neck.
        backbone_lr_ratio: the backbone's learning rate as a share of the head's.
        layer_decay: factor of the backbone's rate from each layer to the one before it.
        weight_decay: of matrices and kernels; biases and norms have none.
        momentum: of sgd.
        betas: of the Adam family.
        schedule: shape of the rates after the warm-up.
        warmup_steps: optimiser steps of the linear warm-up; cut to a tenth of a short run.
        floor: smallest share of its own peak that any rate falls to.
        milestones: of step, shares of the run after which the rates are multiplied by gamma.
        gamma: of step and plateau.
        patience: of plateau, validations without a gain before the rates fall.
        cycles: of cyclic, triangles in the run.
        gradient_clip: largest norm of the whole gradient; 0 does not clip.
    """

    name: Literal["adamw", "adam", "sgd", "radam", "nadam", "lion", "adan", "lamb"] = "adamw"
    head_lr: Amount = 3e-4
    backbone_lr_ratio: Amount = 0.01
    layer_decay: ShareAbove0 = 1.0
    weight_decay: Amount = 0.1
    momentum: ShareBelow1 = 0.9
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.999)
    schedule: Literal["cosine", "constant", "step", "cyclic", "plateau"] = "cosine"
    warmup_steps: Count = 4500
    floor: Share = 0.0
    milestones: tuple[Share, ...] = (0.5, 0.75)
    gamma: Share = 0.1
    patience: Count = 2
    cycles: CountFrom1 = 4
    gradient_clip: Amount = 5.0


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Args:
        epochs: passes over the training images.
        head_epochs: of them, at the start, with the backbone frozen (linear probe, then tune).
        cache_features: embed each training image once with the frozen backbone
            (backbone.trainable_blocks 0), unaugmented, and train neck and head on that.
        feature_cache: folder in which these features are kept for the next run.
        accumulate: batches an optimiser step.
        precision: no is fp32; bf16 and fp16 are mixed.
        channels_last: memory order of the convolutions.
        compile: run the model through torch.compile.
        sync_batchnorm: batch statistics over all processes (GPU).
        validate_every: epochs between two validations; the last epoch is always validated.
        validate_steps: validate every so many optimiser steps too; 0 only by epochs.
        log_steps: optimiser steps between two lines of loss and rates in metrics.jsonl.
        save_minutes: between two saves of the state that a killed run continues from; it is
            saved after each epoch too.
        save_steps: the same in optimiser steps; 0 leaves it to the minutes.
        early_stopping: end after so many validations without a gain; 0 never.
        ema_decay: above 0, validate and keep the moving average of the weights.
        soup_last: average the weights of this many last validations at the end; 0 does not.
        whitening: above 0, whiten the best model's embeddings by what varies within classes of
            the training set, shrunk by so much (2 is a start); kept where it validates better.
        trackers: tensorboard, wandb (offline) and mlflow, beside metrics.jsonl.
    """

    epochs: CountFrom1 = 3
    head_epochs: Count = 0
    cache_features: bool = False
    feature_cache: str = "runs/features"
    accumulate: CountFrom1 = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False
    validate_every: CountFrom1 = 1
    validate_steps: Count = 0
    log_steps: CountFrom1 = 10
    save_minutes: Amount = 10.0
    save_steps: Count = 0
    early_stopping: Count = 0
    ema_decay: ShareBelow1 = 0.0
    soup_last: Count = 0
    whitening: Amount = 0.0
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


@dataclass(frozen=True)
class PhaseConfig:
    """One training phase. The loss is the weighted sum of head, pair loss and distillation.

    Args:
        dataset: images and how they are read.
        backbone: the network.
        neck: projection behind it.
        margin: the classification head.
        pairs: the loss over pairs, with or without cross-batch memory.
        distillation: another run as a teacher.
        optim: optimiser and schedule.
        train: the loop.
        embedding: how images are embedded, in validation and in the submission of this model.
        pretrain_model: run folder, .safetensors checkpoint or TorchScript export to start from.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    margin: MarginConfig = field(default_factory=MarginConfig)
    pairs: PairLossConfig = field(default_factory=PairLossConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    embedding: EmbedSettings = field(default_factory=EmbedSettings)
    pretrain_model: str | None = None
