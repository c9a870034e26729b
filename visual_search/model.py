"""The embedder: pixels in, unit vectors out. Normalisation of the pixels is part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.backbones import checkpoint_gradients, create_backbone
from visual_search.errors import UserError
from visual_search.necks import NECKS, create_neck
from visual_search.undrawn import Undrawn


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build an embedder again, before its weights are loaded."""

    backbone: str
    """`timm/<model>`, `open_clip/<architecture>/<tag>` or `unicom/<model>`."""
    neck: str
    """A key of :data:`visual_search.necks.NECKS`."""
    dimension: int
    """Width of the embedding."""
    input_size: int
    """Side of the input square in pixels."""
    mean: tuple[float, float, float]
    """Subtracted from pixels scaled to 0..1, in RGB order."""
    std: tuple[float, float, float]
    """Divides them after that."""
    pooling: str = "default"
    """Of the last feature map or tokens: default, avg, gem or cls."""
    patch_overlap: int = 0
    """Pixels that neighbouring patches of a vision transformer share."""
    head_conv: bool = True
    """Whether the wide convolution in front of the pooling is kept, where there is one."""


class Embedder(nn.Module):
    """Photos to unit vectors whose inner product is the cosine similarity.

    The pixel statistics are buffers: whoever has the model normalises as it was trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255.0)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255.0)

    def features(self, pixels: Tensor) -> Tensor:
        """Embeddings before normalisation, `(N, dimension)`, of pixels `(N, 3, H, W)`, 0..255."""
        images = (pixels.to(self.mean.dtype) - self.mean) / self.std
        return self.neck(self.backbone(images))

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors `(N, dimension)` of pixels `(N, 3, H, W)`, uint8 or float, 0..255."""
        return F.normalize(self.features(pixels).float(), dim=1)


def build_embedder(
    backbone: str,
    weights: str,
    input_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    neck: str = "none",
    dimension: int = 0,
    drop_path: float = 0.0,
    *,
    pooling: str = "default",
    patch_overlap: int = 0,
    gradient_checkpointing: bool = False,
    neck_dropout: float = 0.2,
    head_conv: bool = True,
) -> tuple[Embedder, Architecture]:
    """Build an embedder.

    Args:
        backbone: as :func:`visual_search.backbones.create_backbone`, as are weights, drop_path,
            pooling, patch_overlap and head_conv.
        weights: of the backbone.
        input_size: side of the photos in pixels that the embedder is measured with.
        mean: three numbers, of pixels scaled to 0..1.
        std: three numbers above 0.
        neck: a key of :data:`visual_search.necks.NECKS`.
        dimension: of the embedding; 0 keeps the backbone's own width.
        drop_path: stochastic depth rate, 0..1.
        pooling: default, avg, gem or cls.
        patch_overlap: pixels.
        gradient_checkpointing: less memory, more time in training; the same results.
        neck_dropout: of dropout-linear-bn, 0..1; in training only.

    Raises:
        UserError: for anything that does not fit; the message names the key.
    """
    if neck not in NECKS:
        raise UserError(f"neck.kind is {neck!r}; it can be {', '.join(NECKS)}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError("backbone.mean and backbone.std are three numbers each, std above 0")
    made = create_backbone(
        backbone,
        weights,
        drop_path,
        input_size=input_size,
        pooling=pooling,
        patch_overlap=patch_overlap,
        head_conv=head_conv,
    )
    if gradient_checkpointing:
        checkpoint_gradients(made.module, backbone)
    projection = create_neck(neck, made.dimension, dimension, neck_dropout)
    r, g, b = mean
    sr, sg, sb = std
    architecture = Architecture(
        backbone,
        neck,
        dimension or made.dimension,
        input_size,
        (r, g, b),
        (sr, sg, sb),
        pooling,
        patch_overlap,
        head_conv,
    )
    return Embedder(made.module, projection, mean, std), architecture


def rebuild_embedder(architecture: Architecture) -> Embedder:
    """An embedder of a known architecture whose weights are all still to be loaded."""
    with Undrawn():
        embedder, _ = build_embedder(
            architecture.backbone,
            "none",
            architecture.input_size,
            architecture.mean,
            architecture.std,
            architecture.neck,
            architecture.dimension,
            pooling=architecture.pooling,
            patch_overlap=architecture.patch_overlap,
            head_conv=architecture.head_conv,
        )
    return embedder
