"""What stands between backbone and embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.whitening import Whitening


class UnitLength(nn.Module):
    """Rows of length 1."""

    def forward(self, features: Tensor) -> Tensor:
        """`(N, width)`, of the same type."""
        return F.normalize(features, dim=1)


def _none(width: int, dimension: int, dropout: float) -> nn.Module:
    _check_kept("none", width, dimension)
    return nn.Identity()


def _linear(width: int, dimension: int, dropout: float) -> nn.Module:
    return nn.Linear(width, dimension or width)


def _norm_linear(width: int, dimension: int, dropout: float) -> nn.Module:
    # What frozen features mean lies in their direction; their length would scale the bias.
    return nn.Sequential(UnitLength(), nn.Linear(width, dimension or width))


def _linear_bn(width: int, dimension: int, dropout: float) -> nn.Module:
    dimension = dimension or width
    # A bias would be lost in the batch norm's mean.
    return nn.Sequential(nn.Linear(width, dimension, bias=False), nn.BatchNorm1d(dimension))


def _dropout_linear_bn(width: int, dimension: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Dropout(dropout), *_linear_bn(width, dimension, dropout).children())


def _whitening(width: int, dimension: int, dropout: float) -> nn.Module:
    _check_kept("whitening", width, dimension)
    return Whitening(width)


def _check_kept(kind: str, width: int, dimension: int) -> None:
    if dimension not in (0, width):
        raise UserError(
            f"neck.kind {kind} keeps the backbone's {width} dimensions; set neck.dimension to 0, "
            f"or neck.kind to linear-bn for {dimension}"
        )


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
    if not 0 <= dropout < 1:
        raise UserError(f"neck.dropout is {dropout}; write a share from 0 to below 1")
    return NECKS[kind](width, dimension, dropout)


NECKS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "none": _none,
    "linear": _linear,
    "norm-linear": _norm_linear,
    "linear-bn": _linear_bn,
    "dropout-linear-bn": _dropout_linear_bn,
    "whitening": _whitening,  # fitted behind a training, never part of one
}
"""Necks by name; each takes width, dimension (0: the width) and dropout."""
