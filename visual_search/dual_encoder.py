"""Photos and texts to unit vectors of one space, whose inner product is their similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.class_names import ClassNames
from visual_search.model import Architecture, Embedder, build_embedder
from visual_search.shared_space import ClusterProjections, create_projection
from visual_search.text_towers import TextTowers, create_text_towers

# Texts that are embedded at once.
TEXT_BATCH = 256


@dataclass(frozen=True)
class TextArchitecture:
    """Everything needed to build text towers and projections again."""

    towers: tuple[str, ...]
    tokens: int
    pooling: str
    buckets: int
    hashed_dimension: int
    projection: str
    dimension: int
    """Of the shared space."""
    clusters: int
    class_names: bool


class Standardised(nn.Module):
    """Features less their mean, with a standard deviation of 1 over all; noise in training."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dimension: int, noise: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(()))
        self.noise, self.dropout = noise, nn.Dropout(dropout)

    def fit(self, features: Tensor) -> None:
        """Measure mean and scale on `(n, dimension)`."""
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_((features - self.mean).std().clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """`(n, dimension)`."""
        features = (features - self.mean) / self.scale
        if self.training and self.noise:
            features = features + self.noise * torch.randn_like(features)
        return self.dropout(features)


class UnitLength(nn.Module):
    """Vectors to the same of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """`(n, d)` to `(n, d)`, float32."""
        return F.normalize(vectors.float(), dim=1)


class PhotoProjection(nn.Module):
    """From the visual tower's unit vectors into the shared space."""

    def __init__(
        self,
        standardised: Standardised,
        projection: nn.Module,
        names: ClassNames | None,
        name_projection: nn.Module | None,
    ) -> None:
        super().__init__()
        self.standardised, self.projection = standardised, projection
        self.names, self.name_projection = names, name_projection

    def forward(self, vectors: Tensor) -> Tensor:
        """`(n, width)`, unit vectors, to `(n, dimension)`."""
        projected: Tensor = self.projection(self.standardised(vectors))
        if self.names is None or self.name_projection is None:
            return projected
        return projected + self.name_projection(self.names(vectors))


class DualEncoder(nn.Module):
    """A visual tower, text towers, and a projection behind each."""

    def __init__(
        self,
        visual: Embedder,
        text: TextTowers,
        photo_projection: PhotoProjection,
        text_projection: nn.Module,
    ) -> None:
        """
        Args:
            visual: pixels to unit vectors, before the shared space.
            text: tokens to features.
            photo_projection: of these unit vectors.
            text_projection: of the features.
        """
        super().__init__()
        # Named as in an image embedder: the loop trains them at the backbone's and the head's rate.
        self.backbone = nn.ModuleDict({"visual": visual, "text": text})
        self.neck = nn.ModuleDict({"photo": photo_projection, "text": text_projection})

    @property
    def visual(self) -> Embedder:
        """The visual tower."""
        tower = self.backbone["visual"]
        assert isinstance(tower, Embedder)
        return tower

    @property
    def text(self) -> TextTowers:
        """The text towers."""
        towers = self.backbone["text"]
        assert isinstance(towers, TextTowers)
        return towers

    @property
    def photo_projection(self) -> PhotoProjection:
        """Behind the visual tower."""
        projection = self.neck["photo"]
        assert isinstance(projection, PhotoProjection)
        return projection

    def text_projections(self) -> list[nn.Module]:
        """Behind the text towers: one, or one a cluster."""
        projection = self.neck["text"]
        if isinstance(projection, ClusterProjections):
            return list(projection.projections)
        return [projection]

    def photo_embedder(self) -> Embedder:
        """The photo side as an image embedder of its own; it shares the weights."""
        visual = self.visual
        neck = nn.Sequential(UnitLength(), self.photo_projection)
        mean, std = (part.flatten().tolist() for part in (visual.mean / 255, visual.std / 255))
        embedder = Embedder(visual.backbone, neck, mean, std).to(visual.mean.device)
        return embedder.train(self.training)

    def features(self, photos: Tensor) -> Tensor:
        """Photos in the shared space, before normalisation, `(n, dimension)`.

        Args:
            photos: pixels `(n, 3, H, W)`, 0..255, or unit vectors of the visual tower `(n, width)`.
        """
        vectors = self.visual(photos) if photos.ndim == 4 else photos
        return self.photo_projection(vectors)

    def forward(self, photos: Tensor) -> Tensor:
        """Photos as unit vectors, `(n, dimension)`; see :meth:`features`."""
        return F.normalize(self.features(photos).float(), dim=1)

    def text_vectors(
        self, tokens: Sequence[Tensor], owners: Tensor | None = None, photos: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Texts as unit vectors, and the cluster classifier's logits where there is one.

        Args:
            tokens: of :meth:`TextTowers.tokenize`, `m` rows each.
            owners: `(m,)`, int64: which photo each text is of; the vectors of a photo's texts,
                and the logits, are averaged. None where there is one text a row.
            photos: how many there are.

        Returns:
            `(m, dimension)`, or `(photos, dimension)` with owners; and `(…, clusters)` or None.
        """
        features = self.text(tokens)
        projection = self.neck["text"]
        if isinstance(projection, ClusterProjections):
            projected, logits = projection.with_logits(features)
        else:
            projected, logits = projection(features), None
        vectors = F.normalize(projected.float(), dim=1)
        if owners is None:
            return vectors, logits
        if logits is not None:
            logits = _means(logits.float(), owners, photos)
        return F.normalize(_means(vectors, owners, photos), dim=1), logits

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, dimension)`, float32 on the CPU; the mode is kept."""
        return self._of_texts(texts, lambda tokens: self.text_vectors(tokens)[0])

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """What the text towers give, before the projection: `(n, width)`, float32 on the CPU."""
        return self._of_texts(texts, self.text)

    @torch.no_grad()
    def _of_texts(self, texts: Sequence[str], read: Callable[[list[Tensor]], Tensor]) -> Tensor:
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(texts), TEXT_BATCH):
            tokens = self.text.tokenize(texts[start : start + TEXT_BATCH])
            parts.append(read([rows.to(device) for rows in tokens]).float().cpu())
        self.train(was_training)
        return torch.cat(parts)


def _means(rows: Tensor, owners: Tensor, count: int) -> Tensor:
    """The mean of the rows of each owner, `(count, d)`."""
    sums = rows.new_zeros(count, rows.shape[1]).index_add(0, owners, rows)
    sizes = torch.bincount(owners, minlength=count).clamp(min=1)
    return sums / sizes[:, None].to(rows.dtype)


def build_dual_encoder(
    visual: Embedder,
    width: int,
    architecture: TextArchitecture,
    *,
    text_weights: str = "none",
    files: Path | None = None,
    dropout: float = 0.5,
    feature_noise: float = 0.0,
    feature_dropout: float = 0.0,
    text_noise: float = 0.0,
    text_dropout: float = 0.0,
    sharpness: float = 10.0,
) -> DualEncoder:
    """Put the parts together.

    Args:
        visual: the visual tower, with its weights.
        width: of its vectors.
        architecture: of all else.
        text_weights: as :func:`create_text_towers` takes it.
        files: of text towers that were saved with a model.
        dropout: in residual projections, 0..1.
        feature_noise: on the photo's features in training.
        feature_dropout: of the photo's features in training, 0..1.
        text_noise: on frozen text features in training.
        text_dropout: of frozen text features in training, 0..1.
        sharpness: of the class names' softmax.
    """
    text = create_text_towers(
        architecture.towers,
        text_weights,
        tokens=architecture.tokens,
        pooling=architecture.pooling,
        buckets=architecture.buckets,
        dimension=architecture.hashed_dimension,
        noise=text_noise,
        dropout=text_dropout,
        files=files,
    )
    kind, dimension = architecture.projection, architecture.dimension
    names = ClassNames(width, sharpness, feature_dropout) if architecture.class_names else None
    photo = PhotoProjection(
        Standardised(width, feature_noise, feature_dropout),
        create_projection(kind, width, dimension, dropout),
        names,
        nn.Linear(names.dimension, dimension, bias=False) if names else None,
    )
    clusters = architecture.clusters
    projected = (
        ClusterProjections(kind, text.dimension, dimension, clusters, dropout)
        if clusters > 1
        else create_projection(kind, text.dimension, dimension, dropout)
    )
    return DualEncoder(visual, text, photo, projected)


def rebuild_dual_encoder(
    visual: Architecture, text: TextArchitecture, files: Path | None = None
) -> DualEncoder:
    """A model of a known architecture with random weights, to load others into."""
    embedder, built = build_embedder(
        visual.backbone,
        "none",
        visual.input_size,
        visual.mean,
        visual.std,
        pooling=visual.pooling,
        patch_overlap=visual.patch_overlap,
        head_conv=visual.head_conv,
    )
    return build_dual_encoder(embedder, built.dimension, text, files=files)
