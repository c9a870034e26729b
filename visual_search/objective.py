"""What is trained, as one module: embedder, head, pair loss, teacher. Pixels in, a loss out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.config import MarginConfig, PhaseConfig
from visual_search.losses.distillation import distillation_loss
from visual_search.losses.margin_head import MarginHead
from visual_search.losses.partial_fc import SampledMarginHead
from visual_search.losses.xbm import XbmLoss
from visual_search.model.embedder import Embedder


class Learner(nn.Module):
    """Embedder and losses, so that any parallel wrapper fits round all of it.

    What is minimised is the sum of head, pair loss and distillation, each times its weight in the
    configuration, which may leave out any of them.
    """

    def __init__(
        self,
        embedder: Embedder,
        dimension: int,
        config: PhaseConfig,
        counts: Tensor,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            embedder: pixels to embeddings; what is kept in the end.
            dimension: of the embeddings.
            config: the phase; with `train.cache_features` the backbone's features `(N, width)`
                come in, not pixels.
            counts: `(classes,)`, int64, training images of each class.
            teacher: uint8 pixels `(N, 3, H, W)` to unit vectors, without gradient; needed where
                the phase distils.

        Raises:
            UserError: for prefixes of the embedding (`margin.nested`) that it has not.
        """
        super().__init__()
        _check_nested(config.margin, dimension)
        self.embedder, self.config = embedder, config
        self.head: MarginHead | None = None
        self.pairs: nn.Module | None = None
        if config.margin.weight:
            kind = MarginHead if config.margin.sampled_share == 1.0 else SampledMarginHead
            self.head = kind(dimension, counts, config.margin, config.dataset.seed)
        if config.pairs.name != "none":
            self.pairs = XbmLoss(config.pairs, dimension)
        # In a tuple, since a teacher must not become a part that is trained and saved.
        self._teacher = (teacher,)
        self._features: Callable[[Tensor], Tensor] = (
            embedder.neck if config.train.cache_features else embedder.features
        )

    def compile_features(self) -> None:
        """Run the embedder, or its neck, through torch.compile in training; validation is eager."""
        self._features = torch.compile(self._features)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        ids: Tensor,
        other_labels: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            pixels: `(N, 3, H, W)`, uint8, or float 0..255 where images were mixed.
            labels: `(N,)`, int64.
            ids: `(N,)`, int64, the image's number in the training set.
            other_labels: `(N,)`, of the second image in a mixed one.
            share: `(N,)`, of the first image, 0..1.
        """
        config, features = self.config, self._features(pixels)
        total = features.new_zeros((), dtype=torch.float32)
        if self.head is not None:
            dropped = F.dropout(features, config.margin.dropout, self.training)
            rows = self._head_losses(self.head, dropped, labels)
            if other_labels is not None and share is not None:
                others = self._head_losses(self.head, dropped, other_labels, observes=False)
                rows = share * rows + (1 - share) * others
            total = total + config.margin.weight * rows.mean()
        if self.pairs is not None:
            loss = self.pairs(F.normalize(features.float(), dim=1), labels, ids)
            total = total + config.pairs.weight * loss
        if config.distillation.run:
            assert self._teacher[0] is not None
            with torch.no_grad():
                taught = self._teacher[0](pixels)
            ours = F.normalize(features.float(), dim=1)
            loss = distillation_loss(config.distillation.kind, ours, taught)
            total = total + config.distillation.weight * loss
        return total

    def _head_losses(
        self, head: MarginHead, features: Tensor, labels: Tensor, observes: bool = True
    ) -> Tensor:
        """`(N,)`: the head's, the mean over the whole width and the nested ones."""
        rows = head(features, labels, observes)
        nested = self.config.margin.nested
        for width in nested:
            rows = rows + head.prefix_losses(features, labels, width)
        return rows / (1 + len(nested))


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
