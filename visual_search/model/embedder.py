"""The embedder: pixels in, unit vectors out. Normalisation of the pixels is part of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from visual_search.common.errors import UserError
from visual_search.common.model_config import BackboneConfig, NeckConfig
from visual_search.model.backbones import checkpoint_gradients, create_backbone, packages_of
from visual_search.model.clip_folder import folder_settings
from visual_search.model.projections import Whitening


class UnitLength(nn.Module):
    """Rows of length 1."""

    def forward(self, features: Tensor) -> Tensor:
        """`(N, width)`, of the same type."""
        return F.normalize(features, dim=1)


NECKS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "none": lambda width, dimension, dropout: nn.Identity(),
    "linear": lambda width, dimension, dropout: nn.Linear(width, dimension),
    # What frozen features mean lies in their direction; their length would scale the bias.
    "norm-linear": lambda width, dimension, dropout: nn.Sequential(
        UnitLength(), nn.Linear(width, dimension)
    ),
    # A bias would be lost in the batch norm's mean.
    "linear-bn": lambda width, dimension, dropout: nn.Sequential(
        nn.Linear(width, dimension, bias=False), nn.BatchNorm1d(dimension)
    ),
    "dropout-linear-bn": lambda width, dimension, dropout: nn.Sequential(
        nn.Dropout(dropout), nn.Linear(width, dimension, bias=False), nn.BatchNorm1d(dimension)
    ),
    # Fitted behind a training, never part of one.
    "whitening": lambda width, dimension, dropout: Whitening(width, dimension),
}
"""Necks by name; each takes width, dimension and dropout."""


def create_neck(kind: str, width: int, dimension: int = 0, dropout: float = 0.2) -> nn.Module:
    """Build a neck, `(N, width)` to `(N, dimension)`.

    Args:
        kind: a key of :data:`NECKS`.
        width: of the backbone's features.
        dimension: of the embedding; 0 is the width.
        dropout: share of the features set to 0 in training, 0..1, of dropout-linear-bn.

    Raises:
        UserError: for an unknown kind, or a dimension that it cannot give.
    """
    if kind not in NECKS:
        raise UserError(f"neck.kind is {kind!r}; it can be {', '.join(NECKS)}")
    if dimension < 0:
        raise UserError(f"neck.dimension is {dimension}; write 0 (the backbone's) or more")
    if kind == "none" and dimension not in (0, width):
        raise UserError(
            f"neck.kind none keeps the backbone's {width} dimensions; set neck.dimension to 0, "
            f"or neck.kind to linear-bn for {dimension}"
        )
    return NECKS[kind](width, dimension or width, dropout)


RAW_PIXELS = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
"""Mean and standard deviation that leave the pixels at 0..255, for an ensemble's members."""
MOST_MEMBERS = 16
"""Of an ensemble."""


_OF_BACKBONE = ("mean", "std", "pooling", "patch_overlap", "head_conv", "layers", "layer_weights")
"""What a backbone's configuration and an architecture have alike."""


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build an embedder again, before its weights are loaded."""

    backbone: str
    """`timm/<model>`, `open_clip/<architecture>/<tag>`, `unicom/<model>` or `clip/<folder>`."""
    neck: str
    """A key of :data:`visual_search.model.embedder.NECKS`."""
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
    settings: Mapping[str, Any] | None = None
    """Of `clip/<folder>`, what shapes its tower: the folder need not be there any more. Of an
    ensemble, the `members`, each as `model.json` has an architecture."""
    layers: tuple[int, ...] = ()
    """Stages or blocks whose features join the backbone's own, counted from the end."""
    layer_weights: tuple[float, ...] = ()
    """Of each of them beside 1; none: all 1."""

    @classmethod
    def parsed(cls, parts: Mapping[str, Any]) -> Architecture:
        """As a `model.json` has it.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: for what is none.
        """
        values = dict(parts)
        for key in ("mean", "std"):
            r, g, b = values[key]
            values[key] = (float(r), float(g), float(b))
        for key in {"layers", "layer_weights"} & set(values):
            values[key] = tuple(values[key])
        found = cls(**values)
        if len(found.members) > MOST_MEMBERS or any(one.members for one in found.members):
            raise ValueError(f"an ensemble has {MOST_MEMBERS} single models at the most")
        return found

    @property
    def members(self) -> tuple[Architecture, ...]:
        """Of an ensemble; none of a single model."""
        return tuple(map(Architecture.parsed, (self.settings or {}).get("members", ())))

    @property
    def packages(self) -> list[str]:
        """What has to be installed, beside torch, to build it."""
        parts = self.members or (self,)
        return sorted({name for part in parts for name in packages_of(part.backbone)})

    def whitened(self, whitening: Whitening) -> Architecture:
        """With a whitening behind the network, in place of no neck."""
        return replace(self, neck="whitening", dimension=whitening.projection.shape[1])


class Embedder(nn.Module):
    """Images to unit vectors whose inner product is the cosine similarity.

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


class Concatenation(nn.Module):
    """The unit vectors of several embedders side by side: what an ensemble has for a backbone.

    A vector is scaled by the root of its member's share, so that the inner product of two of these
    is the mean of the members' cosines, weighted by their shares.
    """

    scales: Tensor

    def __init__(self, members: Sequence[Embedder], weights: Sequence[float]) -> None:
        """
        Args:
            members: whose pixels are alike.
            weights: of each, above 0; their shares are these divided by the sum.
        """
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("scales", (torch.tensor(weights) / sum(weights)).sqrt())

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors `(N, sum of the widths)` of pixels `(N, 3, H, W)`, 0..255."""
        each = zip(self.scales, self.members, strict=True)
        return torch.cat([scale * member(pixels) for scale, member in each], dim=1)


def build_ensemble(
    members: Sequence[tuple[Embedder, Architecture]], weights: Sequence[float]
) -> tuple[Embedder, Architecture]:
    """Several embedders as one, with no neck behind them.

    Args:
        members: of one input size, none of them an ensemble.
        weights: as of :class:`Concatenation`.
    """
    parts = [architecture for _, architecture in members]
    architecture = Architecture(
        "ensemble/" + " + ".join(part.backbone for part in parts),
        "none",
        sum(part.dimension for part in parts),
        parts[0].input_size,
        *RAW_PIXELS,
        settings={"members": [asdict(part) for part in parts]},
    )
    network = Concatenation([embedder for embedder, _ in members], weights)
    return Embedder(network, nn.Identity(), *RAW_PIXELS), architecture


def build_embedder(
    backbone: BackboneConfig, input_size: int, neck: NeckConfig | None = None
) -> tuple[Embedder, Architecture]:
    """Build an embedder.

    Args:
        backbone: the network and its weights.
        input_size: side of the images in pixels, in validation and afterwards.
        neck: behind it; None is none.

    Raises:
        UserError: for anything that does not fit; the message names the key.
    """
    neck = neck or NeckConfig()
    if len(backbone.mean) != 3 or len(backbone.std) != 3 or min(backbone.std) <= 0:
        raise UserError("backbone.mean and backbone.std are three numbers each, std above 0")
    settings = None
    if backbone.name.startswith("clip/"):
        settings = folder_settings(backbone.name.removeprefix("clip/"))
    made = create_backbone(backbone, input_size)
    if backbone.gradient_checkpointing:
        checkpoint_gradients(made.module, backbone.name)
    projection = create_neck(neck.kind, made.dimension, neck.dimension, neck.dropout)
    architecture = Architecture(
        backbone.name,
        neck.kind,
        neck.dimension or made.dimension,
        input_size,
        settings=settings,
        **{name: getattr(backbone, name) for name in _OF_BACKBONE},
    )
    return Embedder(made.module, projection, backbone.mean, backbone.std), architecture


def rebuild_embedder(architecture: Architecture) -> Embedder:
    """An embedder of a known architecture whose weights are all still to be loaded."""
    kind: Any = architecture.neck  # whitening among them, which no configuration has
    members, size, settings = architecture.members, architecture.input_size, architecture.settings
    with SkipInit():
        if members:
            parts = [rebuild_embedder(replace(one, input_size=size)) for one in members]
            width = sum(one.dimension for one in members)
            neck = create_neck(kind, width, architecture.dimension)
            network = Concatenation(parts, [1.0] * len(parts))
            return Embedder(network, neck, architecture.mean, architecture.std)
        name = f"clip/{json.dumps(settings)}" if settings else architecture.backbone
        alike = {part: getattr(architecture, part) for part in _OF_BACKBONE}
        backbone = BackboneConfig(name, "none", **alike)
        return build_embedder(backbone, size, NeckConfig(kind, architecture.dimension))[0]


_DRAWS = frozenset(
    [
        *(getattr(Tensor, name) for name in ("uniform_", "normal_", "erfinv_", "bernoulli_")),
        *(getattr(init, name) for name in ("uniform_", "normal_", "trunc_normal_", "orthogonal_")),
        *(getattr(init, name) for name in ("xavier_uniform_", "xavier_normal_", "sparse_")),
        *(getattr(init, name) for name in ("kaiming_uniform_", "kaiming_normal_")),
    ]
)


class SkipInit(TorchFunctionMode):
    """While it is on, random initial values are left out: weights hold whatever is in memory.

    Half a minute of one core for a network of a billion weights. Constants, such as the ones of a
    norm's scale, are set as ever. Every weight has to be loaded afterwards.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
