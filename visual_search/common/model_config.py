"""What can be configured of a model, and of how it embeds images: all that a ranker has to know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from visual_search.common.errors import UserError
from visual_search.common.ranges import (
    Count,
    CountFrom1,
    CountOrAll,
    Positive,
    Range,
    Share,
    ShareBelow1,
    Side,
    Width,
    Workers,
    from_values,
)
from visual_search.common.unused import Unless, When

Fit = Literal["squash", "letterbox"]
"""How a region becomes a square: without keeping its aspect, or whole, on white."""

# Choices of earlier versions, which exported models may name.
GONE = (
    ("backend", "openvino", "torch"),
    ("backend", "compile", "torch"),
    ("decoder", "nvjpeg", "cpu"),
)


@dataclass(frozen=True)
class BackboneConfig:
    """The network that sees the image.

    Args:
        name: timm/<model>, open_clip/<architecture>/<tag>, unicom/<model>, or clip/<folder> (of
            Hugging Face's CLIP or ru-CLIP).
        weights: hub, hub:<tag>, none, package:efficientnet_lite0, or a state-dict file.
        mean: subtracted from pixels scaled to 0..1, RGB.
        std: divides them after that, RGB.
        pooling: of the last feature map; default is the model's own.
        head_conv: keep the wide convolution in front of the pooling of EfficientNet and
            MobileNet; without it features are narrower, and less those of the pretraining's task.
        layers: further stages (of a transformer: blocks) whose features, averaged over positions,
            join the network's own, counted from its end, 1 being the last.
        layer_weights: of these layers, beside 1 of the network's own features; none: all 1.
        drop_path: stochastic depth rate, 0..1, for timm models that know it.
        patch_overlap: pixels that neighbouring patches of a ViT share; more tokens, finer.
        freeze_batchnorm: keep the running statistics of the pretrained batch norms.
        frozen_stages: how many stages (of a transformer: blocks) from the stem on are not trained;
            what they learnt serves as it is, and a step costs less.
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
    layers: tuple[CountFrom1, ...] = ()
    layer_weights: Annotated[tuple[Positive, ...], When("layers")] = ()


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
    dimension: Width = 0
    dropout: Annotated[ShareBelow1, When("kind", "dropout-linear-bn")] = 0.2
    initial: Literal["random", "pca", "lda"] = "random"
    shrinkage: Annotated[Positive, When("initial", "lda")] = 2.0


@dataclass(frozen=True)
class EmbedSettings:
    """How images are embedded, in validation and in the submission alike.

    What is "auto" or 0 follows the rules of
    :func:`visual_search.ranking.inference_plan.plan_inference`.

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
        views: how each image is made a square: squash (its aspect is lost), letterbox (on white);
            none is squash. Of both the embedding is the mean, and training draws one an image.
        view_sizes: side in pixels of each view; none, or at another input size than the model's
            own: all as the input.
        flip: each image is also seen mirrored; its embedding is the mean.
        crops: each image is seen in five crops of a larger square; its embedding is the mean.
        trim_borders: cut white borders of gallery images away.
    """

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    batch_size: Annotated[int, Range(0, 1_000_000)] = 0
    workers: Workers = 0
    decoder: Annotated[Literal["auto", "cpu", "nvjpeg"], When("")] = "auto"
    backend: Literal["auto", "torch", "onnx"] = "auto"
    min_cosine: Annotated[Share, Unless("backend", "torch")] = 0.9999
    views: tuple[Fit, ...] = ()
    view_sizes: Annotated[tuple[Side, ...], When("views")] = ()
    flip: bool = False
    crops: bool = False
    trim_borders: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes of other views than there are."""
        if len(self.view_sizes) not in (0, len(self.fits)):
            raise UserError(
                f"embedding.view_sizes has {len(self.view_sizes)} sizes of {len(self.fits)} "
                "views: write one for each, or none"
            )

    @property
    def fits(self) -> tuple[Fit, ...]:
        """The views, at least one."""
        return self.views or ("squash",)

    @property
    def copies(self) -> int:
        """How often the model sees each view of an image: mirrored, in crops."""
        return (5 if self.crops else 1) * (2 if self.flip else 1)

    @property
    def is_plain(self) -> bool:
        """Whether the model sees each image once, squashed to a square of its own input size."""
        return self.copies == 1 and self.fits == ("squash",) and not self.view_sizes

    def sides(self, input_size: int) -> tuple[int, ...]:
        """Side in pixels of each view, for a model of this input size."""
        return self.view_sizes or (input_size,) * len(self.fits)

    def at(self, input_size: int, own: int) -> EmbedSettings:
        """The same at another input size than a model's `own`, which `view_sizes` belong to."""
        return self if input_size == own else replace(self, view_sizes=())

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
        return from_values(cls, values, f"{source}: ")
