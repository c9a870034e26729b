"""From a tower's features into the space that photos and texts share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.errors import UserError


class ResidualProjection(nn.Module):
    """Linear, then quick-GELU, linear, dropout, the residual, and LayerNorm."""

    def __init__(self, width: int, dimension: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.first = nn.Linear(width, dimension)
        self.second = nn.Linear(dimension, dimension)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dimension)

    def forward(self, features: Tensor) -> Tensor:
        """`(n, width)` to `(n, dimension)`."""
        projected = self.first(features)
        activated = projected * torch.sigmoid(1.702 * projected)
        return self.norm(projected + self.dropout(self.second(activated)))


def create_projection(kind: str, width: int, dimension: int, dropout: float = 0.5) -> nn.Module:
    """A projection by name: linear or residual.

    Raises:
        UserError: for another name.
    """
    if kind == "linear":
        return nn.Linear(width, dimension)
    if kind == "residual":
        return ResidualProjection(width, dimension, dropout)
    raise UserError(f"projection.kind is {kind!r}; it can be linear, residual")


class ClusterProjections(nn.Module):
    """A projection for each cluster of texts, and the classifier that weighs them.

    The output is the mean of the projections, weighted by the classifier's probabilities, so the
    contrastive loss teaches the classifier as well; its cross-entropy with the known clusters
    keeps the projections apart.
    """

    def __init__(
        self, kind: str, width: int, dimension: int, clusters: int, dropout: float = 0.5
    ) -> None:
        super().__init__()
        made = [create_projection(kind, width, dimension, dropout) for _ in range(clusters)]
        # All start alike: what sets them apart is learnt.
        for other in made[1:]:
            other.load_state_dict(made[0].state_dict())
        self.projections = nn.ModuleList(made)
        self.classifier = nn.Linear(width, clusters)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """`(n, width)` to `(n, dimension)`."""
        return self.with_logits(features)[0]

    def with_logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` gives, and the classifier's logits, `(n, clusters)`."""
        logits = self.classifier(features)
        weights = F.softmax(logits.float(), dim=1).to(features.dtype)
        projected = torch.stack([part(features) for part in self.projections], dim=1)
        return (weights[:, :, None] * projected).sum(dim=1), logits
