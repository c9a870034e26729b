"""From the towers into the space that images and texts share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.text.config import ProjectionConfig
from visual_search.text.towers import Standardised, TextTowers

IMAGENET_CLASSES = 1000
ENCODER_WIDTH = 512
"""Of the sentence encoder `use`."""


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


def create_projection(width: int, config: ProjectionConfig) -> nn.Module:
    """The projection of features of some width; of the kind `none`, none.

    Raises:
        UserError: where there is none and the width is not that of the shared space.
    """
    kind, dimension = config.kind, config.dimension
    if kind in ("residual", "ru-clip"):
        return ResidualProjection(width, dimension, config.dropout, bias=kind == "residual")
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
        width, clusters = towers.dimension, projection.clusters
        if projection.kind == "none":
            raise UserError(
                "projection.clusters needs projections to choose from: set projection.kind to "
                "linear or residual, or projection.clusters to 1"
            )
        made = [create_projection(width, projection) for _ in range(clusters)]
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


class ClassNames(nn.Module):
    """What the visual tower's own classifier says of an image, in words.

    A network that was trained to name 1,000 classes knows more than its features tell a small table
    of pairs. The names of the classes that it sees are embedded by a text encoder, and their mean,
    weighted by its certainty, is where the image starts in the space of texts (Norouzi et al.,
    "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014).
    """

    classes: Tensor
    names: Tensor
    sharpness: Tensor

    def __init__(self, width: int, sharpness: float = 10.0, dropout: float = 0.0) -> None:
        """
        Args:
            width: of the visual tower's vectors.
            sharpness: factor of the products with the classifier's rows before the softmax.
            dropout: share of the answer's numbers dropped in training, 0..1.
        """
        super().__init__()
        self.register_buffer("classes", torch.zeros(IMAGENET_CLASSES, width))
        self.register_buffer("names", torch.zeros(IMAGENET_CLASSES, ENCODER_WIDTH))
        self.register_buffer("sharpness", torch.tensor(float(sharpness)))
        self.dropout = nn.Dropout(dropout)

    def fit(self, classes: Tensor, names: Tensor, images: Tensor) -> None:
        """Take over a classifier and the names' vectors, and scale the answers to a size of 1.

        Args:
            classes: `(1000, width)`, the classifier's rows.
            names: `(1000, 512)`, the names' vectors.
            images: `(n, width)`, unit vectors of images to measure the answers' size on.
        """
        self.classes.copy_(classes)
        self.names.copy_(names - names.mean(dim=0))
        size = self._mean_name(images.to(self.names)).square().mean().sqrt()
        self.names.div_(size.clamp(min=1e-6))

    def _mean_name(self, vectors: Tensor) -> Tensor:
        certainty = (self.sharpness * vectors @ self.classes.T).softmax(dim=1)
        return certainty @ self.names

    def forward(self, vectors: Tensor) -> Tensor:
        """`(n, width)`, unit vectors, to `(n, 512)`, less the mean of all names."""
        return self.dropout(self._mean_name(vectors.to(self.names.dtype)))


class ImageProjection(nn.Module):
    """From the visual tower's unit vectors into the shared space."""

    def __init__(self, width: int, config: ProjectionConfig) -> None:
        super().__init__()
        self.raw = config.kind == "ru-clip"
        """Whether it is for the visual tower's features at the length that they have."""
        dropout = config.feature_dropout
        self.standardised = Standardised(width, config.feature_noise, dropout)
        self.projection = create_projection(width, config)
        self.names: ClassNames | None = None
        if config.class_names != "none":
            self.names = ClassNames(width, config.sharpness, dropout)
            self.name_projection = nn.Linear(ENCODER_WIDTH, config.dimension, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """`(n, width)`, unit vectors, to `(n, dimension)`."""
        projected: Tensor = self.projection(self.standardised(vectors))
        if self.names is None:
            return projected
        return projected + self.name_projection(self.names(vectors))
