"""What can be configured: frozen dataclasses with their defaults. `config_reader` fills them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from visual_search.common.errors import UserError


@dataclass(frozen=True)
class Product10KConfig:
    """Where Product10K, or a data set in its layout, lies.

    Args:
        use: train on it; false leaves the other tables.
        train_valid_root: folder of the lists and of the photo folders.
        train_prefix: folder of the training photos.
        train_list: csv with the columns name, class.
        val_prefix: folder of the test photos.
        val_list: csv of the test photos, with the same columns.
        weight: how often a photo is drawn in an epoch; 1 is once, 0.5 every second epoch.
        more_than: a class needs more photos than this; 0 takes all.
        at_most: photos of a class, drawn at random; 0 takes all.
    """

    use: bool = True
    train_valid_root: str = "dataset/Product10K"
    train_prefix: str = "train"
    train_list: str = "train.csv"
    val_prefix: str = "test"
    val_list: str = "test_kaggletest.csv"
    weight: float = 1.0
    more_than: int = 0
    at_most: int = 0


@dataclass(frozen=True)
class TableConfig:
    """A further table of training photos; its classes are numbered behind the others'.

    Args:
        file: csv: Amazon pairs (image_path, label), dataset_info.csv or folds.csv.
        root: folder its paths are relative to; empty is the csv's own.
        fold: of a folds.csv, the fold that is held out; -1 holds none out.
        weight: how often a photo is drawn in an epoch; 1 is once, 0.5 every second epoch.
        more_than: a class needs more photos than this; 0 takes all.
        at_most: photos of a class, drawn at random; 0 takes all.
    """

    file: str
    root: str = ""
    fold: int = -1
    weight: float = 1.0
    more_than: int = 0
    at_most: int = 0


@dataclass(frozen=True)
class DevSetConfig:
    """The development set that validation ranks: in the challenge's layout, or a table.

    Args:
        eval_root: folder that the image paths of both tables are relative to.
        gallery: csv with the columns seller_img_id, img_path, product_id.
        queries: csv with the columns user_img_id, img_path, bbox_x, …, bbox_h, product_id.
        table: instead of these, a dataset_info.csv or folds.csv, of which the held-out rows are
            ranked: queries against gallery where evaluation_status says so, else each photo
            against all others.
        root: folder that the table's paths are relative to; empty is its own.
        fold: of a folds.csv, the fold that is held out; -1 for the rows that always test.
    """

    eval_root: str = "dataset/development_test_data"
    gallery: str = "gallery.csv"
    queries: str = "queries.csv"
    table: str = ""
    root: str = ""
    fold: int = -1


@dataclass(frozen=True)
class SamplerConfig:
    """Which photos meet in a batch.

    Args:
        kind: shuffle; m-per-class for pair losses; size-balanced draws small classes more often.
        images_per_class: of m-per-class, photos of a class in a batch.
        size_power: of size-balanced, a class is drawn in proportion to its size to this power.
    """

    kind: Literal["shuffle", "m-per-class", "size-balanced"] = "shuffle"
    images_per_class: int = 2
    size_power: float = 0.5


@dataclass(frozen=True)
class MixingConfig:
    """Two photos in one, with both labels.

    Args:
        kind: none, mixup (blended), cutmix (a patch of the other), or both in turn.
        alpha: of the beta distribution that the share is drawn from.
        probability: share of the batches that are mixed, 0..1.
    """

    kind: Literal["none", "mixup", "cutmix", "both"] = "none"
    alpha: float = 0.4
    probability: float = 1.0


@dataclass(frozen=True)
class DatasetConfig:
    """The photos, and how they reach the model.

    Args:
        product10k: the training photos.
        tables: further training photos.
        dev_set: the photos that validation ranks.
        train_on_test: train on Product10K's test photos too; the run's report says so.
        seed: of every random draw of the run.
        num_of_classes: of Product10K: at least its highest class plus one.
        max_classes: train on so many classes of all data sets together, drawn at random; 0 on all.
        input_size: side of the model's input in training, in pixels.
        input_size_valid: the same in validation and in the submission; 0 is as in training.
            Convolutional networks gain from a somewhat larger one (Touvron et al. 2019).
        batch_size: photos a step and process.
        sampler: which photos meet in a batch.
        augmentations: of the training photos.
        augmentations_valid: none, since validation is what the submission does.
        random_erasing: share of the training photos with an erased rectangle, 0..1.
        mixing: mixup or cutmix.
        num_workers: processes that read training photos; 0 reads them in the training process.
        max_broken_share: stop when more of the photos read than this share cannot be read, 0..1.
    """

    product10k: Product10KConfig = field(default_factory=Product10KConfig)
    tables: tuple[TableConfig, ...] = ()
    dev_set: DevSetConfig = field(default_factory=DevSetConfig)
    train_on_test: bool = False
    seed: int = 42
    num_of_classes: int = 9700
    max_classes: int = 0
    input_size: int = 224
    input_size_valid: int = 0
    batch_size: int = 48
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    augmentations: Literal[
        "none", "flip", "plain", "autoaugment", "randaugment", "trivialaugment", "phone"
    ] = "autoaugment"
    augmentations_valid: Literal["none"] = "none"
    random_erasing: float = 0.0
    mixing: MixingConfig = field(default_factory=MixingConfig)
    num_workers: int = 8
    max_broken_share: float = 0.05


# Choices of earlier versions, which exported models may name.
GONE = (
    ("backend", "openvino", "torch"),
    ("backend", "compile", "torch"),
    ("decoder", "nvjpeg", "cpu"),
)


@dataclass(frozen=True)
class EmbedSettings:
    """How images are embedded, in validation and in the submission alike.

    What is "auto" or 0 follows the rules of :func:`visual_search.ranking.precision.plan_inference`.

    Args:
        precision: fp32, bf16 (CPUs that have it) or fp16 (GPUs).
        memory_format: of the convolutions.
        batch_size: images a step.
        workers: threads that read images, on a CPU each also runs the model; 0: one a core.
        decoder: of earlier versions; images are read on the CPU whatever it says.
        backend: torch, or onnx (ONNX Runtime), which auto takes on a CPU where the export has
            a file for it.
        min_cosine: smallest cosine between the embeddings of onnx and of the model in fp32 at
            which it may be taken.
        flip: each image is also seen mirrored; its embedding is the mean.
        crops: each image is seen in five crops of a larger square; its embedding is the mean.
        trim_borders: cut white borders of gallery images away.
    """

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    batch_size: int = 0
    workers: int = 0
    decoder: Literal["auto", "cpu", "nvjpeg"] = "auto"
    backend: Literal["auto", "torch", "onnx"] = "auto"
    min_cosine: float = 0.9999
    flip: bool = False
    crops: bool = False
    trim_borders: bool = False

    @property
    def views(self) -> int:
        """How often the model sees each image."""
        return (5 if self.crops else 1) * (2 if self.flip else 1)

    def unmeasured(self, on_gpu: bool) -> EmbedSettings:
        """The same with nothing left to the machine, for what has to come out alike each time.

        A training that was killed and goes on, and each of several processes, must see the same
        embeddings to the last bit, whatever another CPU multiplies in hardware.

        Args:
            on_gpu: whether the model is on a CUDA device.
        """
        half: Literal["fp16", "fp32"] = "fp16" if on_gpu else "fp32"
        return replace(
            self,
            precision=half if self.precision == "auto" else self.precision,
            memory_format="channels_last" if self.memory_format == "auto" else self.memory_format,
            batch_size=self.batch_size or (64 if on_gpu else 8),
        )

    @classmethod
    def parsed(cls, values: Any, source: str) -> EmbedSettings:
        """Settings from a JSON object whose keys are the names above.

        Args:
            values: what was read.
            source: where, for the error.

        Raises:
            UserError: for an unknown key, a value of another type, a choice that there is not.
        """
        if not isinstance(values, dict):
            raise UserError(f"{source}: embedding settings are an object, not {values!r}")
        for key, gone, instead in GONE:
            if values.get(key) == gone:
                print(f"{source}: {key} {gone} is no longer there, {instead} is used")
                values = {**values, key: instead}
        types, names = get_type_hints(cls), [field.name for field in fields(cls)]
        for key, value in values.items():
            if key not in names:
                raise UserError(f"{source}: unknown key {key!r}; known are {', '.join(names)}")
            choices = get_args(types[key])
            if choices and value not in choices:
                raise UserError(f"{source}: {key} is {value!r}; it can be {', '.join(choices)}")
            if not choices and type(value) is not types[key]:
                raise UserError(f"{source}: {key} is {value!r}, not {types[key].__name__}")
            if isinstance(value, int | float) and value < 0:
                raise UserError(f"{source}: {key} is {value}, it must not be below 0")
        return cls(**values)


@dataclass(frozen=True)
class BackboneConfig:
    """The network that sees the photo.

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
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pooling: Literal["default", "avg", "gem", "cls"] = "default"
    head_conv: bool = True
    drop_path: float = 0.0
    patch_overlap: int = 0
    freeze_batchnorm: bool = False
    frozen_stages: int = 0
    trainable_blocks: int = -1
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class NeckConfig:
    """Between backbone and embedding.

    Args:
        kind: none, or a projection, with dropout before and batch norm behind it or without;
            norm-linear brings the backbone's features to length 1 first.
        dimension: width of the embedding; 0 keeps the backbone's.
        dropout: of the backbone's features, for dropout-linear-bn, 0..1.
        initial: where the projection starts: random, or the principal components (pca) or linear
            discriminants (lda) of the training photos' features; the latter two for linear and
            norm-linear, and with train.cache_features.
        shrinkage: of lda, above 0: the more, the closer to pca.
    """

    kind: Literal["none", "linear", "norm-linear", "linear-bn", "dropout-linear-bn"] = "none"
    dimension: int = 0
    dropout: float = 0.2
    initial: Literal["random", "pca", "lda"] = "random"
    shrinkage: float = 2.0


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
            n being the class's photos.
        low: margin of the most frequent class (minmax) or of an endless one (power), radians.
        span: what the rarest class has above it, radians.
        power: negative; how fast the margin falls with the class's photos.
        label_smoothing: share of the target given to all classes alike, 0..1.
        focal_gamma: weight (1 - p) ** gamma of each photo (focal loss); 0 is cross-entropy.
        grow: how the margin rises from grow_from to its full size.
        grow_from: share of the margin at the start, 0..1.
        grow_share: share of the training after which the margin is full, 0..1.
        sampled_share: below 1, this share of the classes enters a step (Partial FC), besides the
            batch's own; for 100,000 classes and more. The class matrix then has an optimiser of
            its own that moves these rows alone: SGD where optim.name is sgd, else AdamW.
        dropout: of the embedding in front of the head, 0..1.
        imprint: start the centres at the mean embeddings of their classes, not at random.
        nested: widths of prefixes of the embedding that the head is trained on too, so that an
            embedding may be cut there (Matryoshka); all weigh alike.
        elastic_std: standard deviation of elasticface's margin.
        adaface_h: of adaface, how strongly the embedding's length moves the margin.
        curricular_momentum: of curricularface's running mean.
    """

    name: Literal[
        "softmax",
        "arcface",
        "cosface",
        "combined",
        "sphereface",
        "elasticface-arc",
        "elasticface-arc-plus",
        "elasticface-cos",
        "elasticface-cos-plus",
        "curricularface",
        "adaface",
        "adacos",
    ] = "arcface"
    weight: float = 1.0
    centers: int = 3
    scale: float = 30.0
    margin: float = 0.5
    m1: float = 1.0
    m3: float = 0.0
    class_margins: Literal["none", "minmax", "power"] = "minmax"
    low: float = 0.05
    span: float = 0.45
    power: float = -0.25
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    grow: Literal["none", "linear", "log"] = "none"
    grow_from: float = 0.0
    grow_share: float = 1.0
    sampled_share: float = 1.0
    dropout: float = 0.2
    imprint: bool = False
    nested: tuple[int, ...] = ()
    elastic_std: float = 0.0125
    adaface_h: float = 0.333
    curricular_momentum: float = 0.01


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
    weight: float = 1.0
    threshold: float = 0.5
    memory: int = 0
    memory_weight: float = 1.0
    memory_start: int = 0


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
    weight: float = 1.0


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
        floor: smallest share of its own peak that any rate falls to, 0..1.
        milestones: of step, shares of the run after which the rates are multiplied by gamma.
        gamma: of step and plateau.
        patience: of plateau, validations without a gain before the rates fall.
        cycles: of cyclic, triangles in the run.
        gradient_clip: largest norm of the whole gradient; 0 does not clip.
    """

    name: Literal["adamw", "adam", "sgd", "radam", "nadam", "lion", "adan", "lamb"] = "adamw"
    head_lr: float = 3e-4
    backbone_lr_ratio: float = 0.01
    layer_decay: float = 1.0
    weight_decay: float = 0.1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "constant", "step", "cyclic", "plateau"] = "cosine"
    warmup_steps: int = 4500
    floor: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    patience: int = 2
    cycles: int = 4
    gradient_clip: float = 5.0


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Args:
        epochs: passes over the training photos.
        head_epochs: of them, at the start, with the backbone frozen (linear probe, then tune).
        cache_features: embed each training photo once with the frozen backbone
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
        ema_decay: above 0, validate and keep the moving average of the weights, 0..1.
        soup_last: average the weights of this many last validations at the end; 0 does not.
        whitening: above 0, whiten the best model's embeddings by what varies within classes of
            the training set, shrunk by so much (2 is a start); kept where it validates better.
        trackers: tensorboard, wandb (offline) and mlflow, beside metrics.jsonl.
    """

    epochs: int = 3
    head_epochs: int = 0
    cache_features: bool = False
    feature_cache: str = "runs/features"
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False
    validate_every: int = 1
    validate_steps: int = 0
    log_steps: int = 10
    save_minutes: float = 10.0
    save_steps: int = 0
    early_stopping: int = 0
    ema_decay: float = 0.0
    soup_last: int = 0
    whitening: float = 0.0
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


@dataclass(frozen=True)
class PhaseConfig:
    """One training phase. The loss is the weighted sum of head, pair loss and distillation.

    Args:
        dataset: photos and how they are read.
        backbone: the network.
        neck: projection behind it.
        margin: the classification head.
        pairs: the loss over pairs, with or without cross-batch memory.
        distillation: another run as a teacher.
        optim: optimiser and schedule.
        train: the loop.
        embedding: how photos are embedded, in validation and in the submission of this model.
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
