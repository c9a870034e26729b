"""What is trained, as one module: embedder, head, pair loss, teacher. Pixels in, a loss out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.config import MarginConfig, PhaseConfig
from visual_search.losses.margin_head import MarginHead
from visual_search.model.embedder import Embedder

if TYPE_CHECKING:
    from visual_search.losses.distillation import EmbeddingDistillation


@dataclass(frozen=True)
class Objective:
    """The weighted sum that is minimised; a part that is None is left out."""

    head: MarginHead | None
    """`(features (N, d), labels (N,)) -> (N,)` losses."""
    pairs: nn.Module | None
    """`(unit embeddings (N, d), labels (N,), ids (N,)) -> ()` loss."""
    distillation: EmbeddingDistillation | None
    head_weight: float = 1.0
    pairs_weight: float = 1.0
    distillation_weight: float = 1.0
    nested: tuple[int, ...] = ()
    """Widths of prefixes of the embedding that the head is trained on as well."""


class Learner(nn.Module):
    """Embedder and losses, so that any parallel wrapper fits round all of it."""

    def __init__(
        self,
        embedder: Embedder,
        objective: Objective,
        dropout: float = 0.0,
        teacher: Callable[[Tensor], Tensor] | None = None,
        from_features: bool = False,
    ) -> None:
        """
        Args:
            embedder: pixels to embeddings; what is kept in the end.
            objective: the losses.
            dropout: of the embedding in front of the head, 0..1.
            teacher: uint8 pixels `(N, 3, H, W)` to unit vectors, without gradient; needed where
                the objective distils.
            from_features: what comes in is the backbone's features `(N, width)`, not pixels.
        """
        super().__init__()
        self.embedder, self.dropout = embedder, dropout
        self.head: MarginHead | None = objective.head
        self.pairs = objective.pairs
        self.objective = objective
        # In a tuple, since a teacher must not become a part that is trained and saved.
        self._teacher = (teacher,)
        self._features: Callable[[Tensor], Tensor] = (
            embedder.neck if from_features else embedder.features
        )

    def compile_features(self) -> None:
        """Run the embedder through torch.compile in training; validation stays eager."""
        self._features = torch.compile(self.embedder.features)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        ids: Tensor,
        other_labels: Tensor | None = None,
        share: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its parts before weighting.

        Args:
            pixels: `(N, 3, H, W)`, uint8, or float 0..255 where images were mixed.
            labels: `(N,)`, int64.
            ids: `(N,)`, int64, the image's number in the training set.
            other_labels: `(N,)`, of the second image in a mixed one.
            share: `(N,)`, of the first image, 0..1.
        """
        features = self._features(pixels)
        parts: dict[str, Tensor] = {}
        total = features.new_zeros((), dtype=torch.float32)
        if self.head is not None:
            dropped = F.dropout(features, self.dropout, self.training)
            rows = self._head_losses(dropped, labels)
            if other_labels is not None and share is not None:
                rows = share * rows + (1 - share) * self._head_losses(dropped, other_labels)
            parts["head"] = rows.mean()
            total = total + self.objective.head_weight * parts["head"]
        if self.pairs is not None:
            parts["pairs"] = self.pairs(F.normalize(features.float(), dim=1), labels, ids)
            total = total + self.objective.pairs_weight * parts["pairs"]
        if self.objective.distillation is not None:
            assert self._teacher[0] is not None
            with torch.no_grad():
                taught = self._teacher[0](pixels)
            ours = F.normalize(features.float(), dim=1)
            parts["distillation"] = self.objective.distillation(ours, taught)
            total = total + self.objective.distillation_weight * parts["distillation"]
        return total, {name: part.detach() for name, part in parts.items()}

    def _head_losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """`(N,)`: the head's, the mean over the whole width and the nested ones."""
        assert self.head is not None
        rows = self.head(features, labels)
        nested = self.objective.nested
        for width in nested:
            rows = rows + self.head.prefix_losses(features, labels, width)
        return rows / (1 + len(nested))


def build_objective(config: PhaseConfig, dimension: int, counts: Tensor) -> Objective:
    """The losses of a phase; of what it leaves out, nothing is imported.

    Args:
        config: the phase.
        dimension: of the embedding.
        counts: `(classes,)`, int64, training images of each class.

    Raises:
        UserError: for prefixes of the embedding (`margin.nested`) that it has not.
    """
    margin, teacher, distillation = config.margin, config.distillation, None
    _check_nested(margin, dimension)
    if teacher.run:
        from visual_search.losses.distillation import EmbeddingDistillation

        distillation = EmbeddingDistillation(teacher.kind)
    return Objective(
        _head(config, dimension, counts) if margin.weight else None,
        _pair_loss(config, dimension) if config.pairs.name != "none" else None,
        distillation,
        margin.weight,
        config.pairs.weight,
        teacher.weight,
        margin.nested,
    )


def _head(config: PhaseConfig, dimension: int, counts: Tensor) -> MarginHead:
    if config.margin.sampled_share == 1.0:
        return MarginHead(dimension, counts, config.margin, config.dataset.seed)
    from visual_search.losses.partial_fc import SampledMarginHead

    return SampledMarginHead(dimension, counts, config.margin, config.dataset.seed)


def _pair_loss(config: PhaseConfig, dimension: int) -> nn.Module:
    pairs = config.pairs
    from visual_search.losses.xbm import XbmLoss

    return XbmLoss(
        pairs.memory,
        dimension,
        loss=pairs.name,
        weight=pairs.memory_weight,
        start_step=pairs.memory_start,
        threshold=pairs.threshold,
    )


def _check_nested(margin: MarginConfig, dimension: int) -> None:
    if not margin.nested:
        return
    if list(margin.nested) != sorted({w for w in margin.nested if 0 < w < dimension}):
        raise UserError(
            f"margin.nested is {list(margin.nested)}; write rising widths from 1 to "
            f"{dimension - 1}, below the embedding's {dimension}"
        )
    if margin.weight == 0 or margin.sampled_share != 1.0:
        raise UserError(
            "margin.nested trains a head over all classes: set margin.weight above 0 and "
            "margin.sampled_share to 1, or margin.nested to []"
        )
