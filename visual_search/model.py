"""The embedder: pixels in, unit vectors out. Normalisation of the pixels is part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.backbones import create_backbone
from visual_search.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build an embedder again, before its weights are loaded."""

    backbone: str
    """`timm/<model>` or `open_clip/<architecture>/<tag>`."""
    neck: str
    """A key of :data:`NECKS`."""
    dimension: int
    """Width of the embedding."""
    input_size: int
    """Side of the input square in pixels."""
    mean: tuple[float, float, float]
    """Subtracted from pixels scaled to 0..1, in RGB order."""
    std: tuple[float, float, float]
    """Divides them after that."""


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


def _identity(width: int, dimension: int) -> nn.Module:
    if dimension not in (0, width):
        raise UserError(
            f"neck.kind none keeps the backbone's {width} dimensions; set neck.dimension to 0, "
            f"or neck.kind to linear-bn for {dimension}"
        )
    return nn.Identity()


def _linear_bn(width: int, dimension: int) -> nn.Module:
    dimension = dimension or width
    return nn.Sequential(nn.Linear(width, dimension, bias=False), nn.BatchNorm1d(dimension))


NECKS = {"none": _identity, "linear-bn": _linear_bn}
"""What stands between backbone and embedding, by name."""


def build_embedder(
    backbone: str,
    weights: str,
    input_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    neck: str = "none",
    dimension: int = 0,
    drop_path: float = 0.0,
) -> tuple[Embedder, Architecture]:
    """Build an embedder; `dimension` 0 keeps the backbone's own width.

    Raises:
        UserError: as :func:`visual_search.backbones.create_backbone`, and for an unknown neck.
    """
    if neck not in NECKS:
        raise UserError(f"neck.kind is {neck!r}; it can be {', '.join(NECKS)}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError("backbone.mean and backbone.std are three numbers each, std above 0")
    made = create_backbone(backbone, weights, drop_path)
    embedder = Embedder(made.module, NECKS[neck](made.dimension, dimension), mean, std)
    r, g, b = mean
    sr, sg, sb = std
    architecture = Architecture(
        backbone, neck, dimension or made.dimension, input_size, (r, g, b), (sr, sg, sb)
    )
    return embedder, architecture


def rebuild_embedder(architecture: Architecture) -> Embedder:
    """An embedder of a known architecture with random weights, to load others into."""
    embedder, _ = build_embedder(
        architecture.backbone,
        "none",
        architecture.input_size,
        architecture.mean,
        architecture.std,
        architecture.neck,
        architecture.dimension,
    )
    return embedder
