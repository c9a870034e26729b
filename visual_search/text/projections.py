"""From the towers into the space that images and texts share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.text.class_names import ClassNames
from visual_search.text.config import ProjectionConfig
from visual_search.text.towers import Standardised, TextTowers


class ResidualProjection(nn.Module):
    """Linear, then quick-GELU, linear, dropout, the residual, and LayerNorm."""

    def __init__(self, width: int, dimension: int, dropout: float = 0.5, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(width, dimension, bias)
        self.second = nn.Linear(dimension, dimension, bias)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dimension)

    def forward(self, features: Tensor) -> Tensor:
        """`(n, width)` to `(n, dimension)`."""
        projected = self.first(features)
        activated = projected * torch.sigmoid(1.702 * projected)
        return self.norm(projected + self.dropout(self.second(activated)))


def create_projection(kind: str, width: int, dimension: int, dropout: float = 0.5) -> nn.Module:
    """A projection by name: linear, residual, ru-clip, or none, which keeps the width.

    Raises:
        UserError: when there is none and the widths differ.
    """
    if kind in ("residual", "ru-clip"):
        return ResidualProjection(width, dimension, dropout, bias=kind == "residual")
    if kind == "linear":
        return nn.Linear(width, dimension)
    if width != dimension:
        raise UserError(
            f"projection.kind is none, and a tower gives {width} numbers where "
            f"projection.dimension is {dimension}: set it to what both towers give, or "
            "projection.kind to linear"
        )
    return nn.Identity()


def _even(linear: nn.Linear) -> nn.Linear:
    """A classifier that holds all classes for equally likely at the start."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class TokenClassifier(nn.Module):
    """The cluster of a text by its tokens: a transformer block of its own, then a linear layer.

    It runs beside the text tower, whose features it does not need. The order of the tokens is of
    no account: what a query is about lies in its words.
    """

    def __init__(self, towers: TextTowers, clusters: int, width: int = 128) -> None:
        """
        Args:
            towers: the tokens are those of the first that has token numbers.
            clusters: how many.
            width: of the block.

        Raises:
            UserError: when no tower has token numbers.
        """
        super().__init__()
        places = [place for place, tower in enumerate(towers.towers) if tower.vocabulary]
        if not places:
            raise UserError(
                "projection.cluster_classifier transformer reads tokens: add a tower hf/…, clip/… "
                "or open_clip/… to text.towers, or set it to linear"
            )
        self.place = places[0]
        tower = towers.towers[self.place]
        self.padding = tower.padding
        self.embedding = nn.Embedding(tower.vocabulary, width)
        self.block = nn.TransformerEncoderLayer(width, width // 32, 4 * width, batch_first=True)
        self.linear = _even(nn.Linear(width, clusters))

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Logits `(n, clusters)` of what :meth:`TextTowers.tokenize` gives."""
        numbers = tokens[self.place]
        absent = numbers == self.padding
        absent[:, 0] = False  # a text without a token has one of padding
        hidden = self.block(self.embedding(numbers.clamp(min=0)), src_key_padding_mask=absent)
        weights = (~absent)[:, :, None].to(hidden.dtype)
        return self.linear((hidden * weights).sum(dim=1) / weights.sum(dim=1))


class ClusterProjections(nn.Module):
    """A projection for each cluster of texts, and the classifier that weighs them.

    The output is the mean of the projections, weighted by the classifier's probabilities, so the
    contrastive loss teaches the classifier as well; its cross-entropy with the known clusters
    keeps the projections apart.
    """

    def __init__(self, towers: TextTowers, projection: ProjectionConfig) -> None:
        super().__init__()
        kind, width, clusters = projection.kind, towers.dimension, projection.clusters
        if kind == "none":
            raise UserError(
                "projection.clusters needs projections to choose from: set projection.kind to "
                "linear or residual, or projection.clusters to 1"
            )
        made = [
            create_projection(kind, width, projection.dimension, projection.dropout)
            for _ in range(clusters)
        ]
        # All start alike: what sets them apart is learnt.
        for other in made[1:]:
            other.load_state_dict(made[0].state_dict())
        self.projections = nn.ModuleList(made)
        self.reads_tokens = projection.cluster_classifier == "transformer"
        if self.reads_tokens:
            self.classifier: nn.Module = TokenClassifier(towers, clusters)
        else:
            self.classifier = _even(nn.Linear(width, clusters))

    def forward(self, features: Tensor, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """`(n, width)` and its tokens to `(n, dimension)`, and logits `(n, clusters)`."""
        logits = self.classifier(tokens if self.reads_tokens else features)
        weights = F.softmax(logits.float(), dim=1).to(features.dtype)
        projected = torch.stack([part(features) for part in self.projections], dim=1)
        return (weights[:, :, None] * projected).sum(dim=1), logits


class ImageProjection(nn.Module):
    """From the visual tower's unit vectors into the shared space."""

    def __init__(
        self,
        standardised: Standardised,
        projection: nn.Module,
        names: ClassNames | None,
        name_projection: nn.Module | None,
        raw: bool = False,
    ) -> None:
        """`raw`: it is for the visual tower's features at the length that they have."""
        super().__init__()
        self.raw = raw
        self.standardised, self.projection = standardised, projection
        self.names, self.name_projection = names, name_projection

    def forward(self, vectors: Tensor) -> Tensor:
        """`(n, width)`, unit vectors, to `(n, dimension)`."""
        projected: Tensor = self.projection(self.standardised(vectors))
        if self.names is None or self.name_projection is None:
            return projected
        return projected + self.name_projection(self.names(vectors))
