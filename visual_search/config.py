"""What can be configured: frozen dataclasses with their defaults. `config_reader` fills them.

Their docstrings are what --help shows; ranges stand in the annotations of their fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from visual_search.common.dataset_config import DatasetConfig as DatasetConfig
from visual_search.common.dataset_config import DevSetConfig as DevSetConfig
from visual_search.common.dataset_config import Product10KConfig as Product10KConfig
from visual_search.common.dataset_config import TableConfig as TableConfig
from visual_search.common.model_config import BackboneConfig as BackboneConfig
from visual_search.common.model_config import EmbedSettings as EmbedSettings
from visual_search.common.model_config import NeckConfig as NeckConfig
from visual_search.common.ranges import (
    Amount,
    Angle,
    Count,
    CountFrom1,
    Range,
    Share,
    ShareAbove0,
    ShareBelow1,
    Width,
    WidthFrom1,
)
from visual_search.common.unused import Unless, When

# Of image and text, either tower may learn.
_MOVES = Unless(
    "backbone.trainable_blocks", 0, also=("text.train_embeddings", "text.trainable_blocks")
)


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
    scale: Annotated[Amount, Unless("name", "softmax", "adacos")] = 30.0
    margin: Annotated[
        Angle, When("class_margins", "none"), Unless("name", "softmax", "adacos", "sphereface")
    ] = 0.5
    m1: Annotated[Amount, When("name", "combined", "sphereface")] = 1.0
    m3: Annotated[Amount, When("name", "combined")] = 0.0
    class_margins: Annotated[Literal["none", "minmax", "power"], Unless("name", "softmax")] = "none"
    low: Annotated[Angle, When("class_margins")] = 0.05
    span: Annotated[Angle, When("class_margins")] = 0.45
    power: Annotated[float, Range(high=0), When("class_margins")] = -0.25
    label_smoothing: ShareBelow1 = 0.0
    focal_gamma: Amount = 0.0
    grow: Annotated[Literal["none", "linear", "log"], Unless("name", "softmax")] = "none"
    grow_from: Annotated[Share, When("grow")] = 0.0
    grow_share: Annotated[Share, When("grow")] = 1.0
    sampled_share: ShareAbove0 = 1.0
    dropout: ShareBelow1 = 0.2
    imprint: bool = False
    nested: tuple[WidthFrom1, ...] = ()
    elastic_std: Annotated[Amount, When("name", "elasticface-")] = 0.0125
    adaface_h: Annotated[Amount, When("name", "adaface")] = 0.333
    curricular_momentum: Annotated[Share, When("name", "curricularface")] = 0.01


@dataclass(frozen=True)
class PairLossConfig:
    """A loss over pairs of a batch, and of the batch with a memory of earlier batches (XBM).

    Args:
        name: contrastive or multi-similarity; none leaves it out.
        weight: of this loss in the sum.
        threshold: cosine below which negatives cost nothing; multi-similarity's base.
        memory: embeddings remembered, up to the size of the training set; 0 is no memory.
        memory_weight: of the pairs with the memory, against those inside the batch.
        memory_start: batches after which the memory comes into play.
    """

    name: Literal["none", "contrastive", "multi-similarity"] = "none"
    weight: Amount = 1.0
    threshold: Annotated[float, Range(-1, 1)] = 0.5
    memory: Count = 0
    memory_weight: Annotated[Amount, When("memory")] = 1.0
    memory_start: Annotated[Count, When("memory")] = 0


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
    backbone_lr_ratio: Annotated[Amount, _MOVES] = 0.01
    layer_decay: Annotated[ShareAbove0, _MOVES] = 1.0
    weight_decay: Amount = 0.1
    momentum: Annotated[ShareBelow1, When("name", "sgd")] = 0.9
    betas: Annotated[tuple[ShareBelow1, ShareBelow1], Unless("name", "sgd", "adan")] = (0.9, 0.999)
    schedule: Literal["cosine", "constant", "step", "cyclic", "plateau"] = "cosine"
    warmup_steps: Count = 4500
    floor: Annotated[Share, Unless("schedule", "constant")] = 0.0
    milestones: Annotated[tuple[Share, ...], When("schedule", "step")] = (0.5, 0.75)
    gamma: Annotated[Share, When("schedule", "step", "plateau")] = 0.1
    patience: Annotated[Count, When("schedule", "plateau")] = 2
    cycles: Annotated[CountFrom1, When("schedule", "cyclic")] = 4
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
        validate_share: the same in shares of an epoch, such as 0.25.
        validate_reranked: score by the re-ranking steps of `rerank`, as the submission does.
        log_steps: optimiser steps between two lines of loss and rates in metrics.jsonl.
        save_minutes: between two saves of the state that a killed run continues from; it is
            saved after each epoch too.
        save_steps: the same in optimiser steps; 0 leaves it to the minutes.
        early_stopping: end after so many validations without a gain; 0 never.
        ema_decay: above 0, validate and keep the moving average of the weights.
        soup_last: average the weights of this many last validations at the end; 0 does not.
        whitening: above 0, whiten the best model's embeddings by what varies within classes of
            the training set, shrunk by so much (2 is a start); kept where it validates better.
        whitening_power: above 0, try another whitening too, which knows no classes: of what
            varies over all training images, to this power (0.5 is a start); the best is kept.
        whitening_dimension: of the latter's embeddings; 0 keeps their width.
        trackers: tensorboard, wandb (offline) and mlflow, beside metrics.jsonl.
    """

    epochs: CountFrom1 = 3
    head_epochs: Annotated[Count, _MOVES] = 0
    cache_features: bool = False
    feature_cache: str = "runs/features"
    accumulate: CountFrom1 = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False
    validate_every: CountFrom1 = 1
    validate_steps: Count = 0
    validate_share: Annotated[Share, When("validate_steps", 0)] = 0.0
    validate_reranked: bool = False
    log_steps: CountFrom1 = 10
    save_minutes: Amount = 10.0
    save_steps: Count = 0
    early_stopping: Count = 0
    ema_decay: ShareBelow1 = 0.0
    soup_last: Count = 0
    whitening: Amount = 0.0
    whitening_power: Share = 0.0
    whitening_dimension: Annotated[Width, When("whitening_power")] = 0
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
        rerank: re-ranking steps of the submission, in their order, such as swapped_dba; the export
            writes them into model.json, and train.validate_reranked scores by them.
        pretrain_model: run folder, .safetensors checkpoint or TorchScript export to start from.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    backbone: Annotated[
        BackboneConfig,
        Unless(
            "train.cache_features", only=("drop_path", "freeze_batchnorm", "gradient_checkpointing")
        ),
    ] = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    margin: Annotated[MarginConfig, When("margin.weight")] = field(default_factory=MarginConfig)
    pairs: Annotated[PairLossConfig, When("pairs.name")] = field(default_factory=PairLossConfig)
    distillation: Annotated[DistillationConfig, When("distillation.run")] = field(
        default_factory=DistillationConfig
    )
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: Annotated[
        TrainConfig,
        When("train.cache_features", only=("feature_cache",)),
        When(".rerank", only=("validate_reranked",)),
    ] = field(default_factory=TrainConfig)
    embedding: EmbedSettings = field(default_factory=EmbedSettings)
    rerank: tuple[str, ...] = ()
    pretrain_model: str | None = None
