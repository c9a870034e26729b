"""Images and texts to unit vectors of one space, whose inner product is their similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visual_search.model.embedder import Embedder
from visual_search.text.class_names import ClassNames
from visual_search.text.config import ContrastiveConfig, ProjectionConfig, TextConfig
from visual_search.text.losses import ContrastiveLoss
from visual_search.text.towers import Standardised, TextTowers, create_text_towers

TEXT_BATCH = 256
"""Texts that are embedded at once."""


@dataclass(frozen=True)
class TextArchitecture:
    """Everything needed to build text towers and projections again: `text` of `model.json`."""

    towers: tuple[str, ...]
    tokens: int
    pooling: Any
    buckets: int
    hashed_dimension: int
    projection: Any
    dimension: int
    """Of the shared space."""
    clusters: int
    class_names: bool

    @classmethod
    def of(cls, text: TextConfig, projection: ProjectionConfig) -> TextArchitecture:
        """What of a phase's settings shapes the network."""
        tower = tuple(text.towers), text.tokens, text.pooling, text.buckets, text.dimension
        space = projection.kind, projection.dimension, projection.clusters
        return cls(*tower, *space, projection.class_names != "none")

    def settings(self) -> tuple[TextConfig, ProjectionConfig]:
        """The settings that build this network with random weights."""
        text = TextConfig(
            towers=self.towers,
            tokens=self.tokens,
            pooling=self.pooling,
            buckets=self.buckets,
            dimension=self.hashed_dimension,
        )
        return text, ProjectionConfig(
            kind=self.projection,
            dimension=self.dimension,
            clusters=self.clusters,
            class_names="imagenet" if self.class_names else "none",
        )


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
    """A projection by name: linear or residual."""
    if kind == "residual":
        return ResidualProjection(width, dimension, dropout)
    return nn.Linear(width, dimension)


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


class Float32UnitLength(nn.Module):
    """Rows of length 1 in float32, whatever precision the backbone runs in."""

    def forward(self, features: Tensor) -> Tensor:
        """`(n, width)`."""
        return F.normalize(features.float(), dim=1)


class ImageProjection(nn.Module):
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
    """A visual tower (pixels to unit vectors), text towers, and a projection behind each."""

    def __init__(
        self,
        visual: Embedder,
        text: TextTowers,
        image_projection: ImageProjection,
        text_projection: nn.Module,
    ) -> None:
        super().__init__()
        # Named as in an image embedder: the loop trains them at the backbone's and the head's rate.
        self.backbone = nn.ModuleDict({"visual": visual, "text": text})
        self.neck = nn.ModuleDict({"photo": image_projection, "text": text_projection})

    @property
    def visual(self) -> Embedder:
        """The visual tower."""
        return cast(Embedder, self.backbone["visual"])

    @property
    def text(self) -> TextTowers:
        """The text towers."""
        return cast(TextTowers, self.backbone["text"])

    @property
    def image_projection(self) -> ImageProjection:
        """Behind the visual tower."""
        return cast(ImageProjection, self.neck["photo"])

    def text_projections(self) -> list[nn.Module]:
        """Behind the text towers: one, or one a cluster."""
        projection = self.neck["text"]
        if isinstance(projection, ClusterProjections):
            return list(projection.projections)
        return [projection]

    def image_embedder(self) -> Embedder:
        """The image side as an image embedder of its own; it shares the weights."""
        visual = self.visual
        neck = nn.Sequential(Float32UnitLength(), self.image_projection)
        mean, std = (part.flatten().tolist() for part in (visual.mean / 255, visual.std / 255))
        embedder = Embedder(visual.backbone, neck, mean, std).to(visual.mean.device)
        return embedder.train(self.training)

    def features(self, images: Tensor) -> Tensor:
        """Images in the shared space, before normalisation, `(n, dimension)`.

        Args:
            images: pixels `(n, 3, H, W)`, 0..255, or unit vectors of the visual tower `(n, width)`.
        """
        vectors = self.visual(images) if images.ndim == 4 else images
        return self.image_projection(vectors)

    def forward(self, images: Tensor) -> Tensor:
        """Images as unit vectors, `(n, dimension)`; see :meth:`features`."""
        return F.normalize(self.features(images).float(), dim=1)

    def text_vectors(
        self, tokens: Sequence[Tensor], owners: Tensor | None = None, images: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Texts as unit vectors, and the cluster classifier's logits where there is one.

        Args:
            tokens: of :meth:`TextTowers.tokenize`, `m` rows each.
            owners: `(m,)`, int64: which image each text is of; the vectors of an image's texts,
                and the logits, are averaged. None where there is one text a row.
            images: how many there are.

        Returns:
            `(m, dimension)`, or `(images, dimension)` with owners; and `(…, clusters)` or None.
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
            logits = _means(logits.float(), owners, images)
        return F.normalize(_means(vectors, owners, images), dim=1), logits

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
    text: TextConfig,
    projection: ProjectionConfig,
    files: Path | None = None,
) -> DualEncoder:
    """Put the parts together.

    Args:
        visual: the visual tower, with its weights.
        width: of its vectors.
        text: the text towers.
        projection: into the shared space.
        files: of text towers that were saved with a model.
    """
    towers = create_text_towers(text, files)
    kind, dimension, dropout = projection.kind, projection.dimension, projection.dropout
    named = projection.class_names != "none"
    names = ClassNames(width, projection.sharpness, projection.feature_dropout) if named else None
    image = ImageProjection(
        Standardised(width, projection.feature_noise, projection.feature_dropout),
        create_projection(kind, width, dimension, dropout),
        names,
        nn.Linear(names.dimension, dimension, bias=False) if names else None,
    )
    clusters = projection.clusters
    of_texts = (
        ClusterProjections(kind, towers.dimension, dimension, clusters, dropout)
        if clusters > 1
        else create_projection(kind, towers.dimension, dimension, dropout)
    )
    return DualEncoder(visual, towers, image, of_texts)


class ClipLearner(nn.Module):
    """Both encoders and their loss, so that any parallel wrapper fits round all of it."""

    def __init__(self, embedder: DualEncoder, loss: ContrastiveConfig) -> None:
        super().__init__()
        self.embedder, self.pairs = embedder, ContrastiveLoss(loss)
        # The loop asks for a classification head; here is none.
        self.head = None
        self.cluster_weight, self.chunk = loss.cluster_weight, loss.chunk
        self._images: Callable[[Tensor], Tensor] = embedder.features

    def compile_features(self) -> None:
        """Run the image side through torch.compile in training; validation stays eager."""
        self._images = torch.compile(self.embedder.features)

    def forward(
        self,
        images: Tensor,
        tokens: Sequence[Tensor],
        owners: Tensor | None,
        groups: Tensor,
        text_ids: Tensor,
        clusters: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its parts before weighting.

        Args:
            images: pixels `(n, 3, H, W)`, or the visual tower's vectors `(n, width)`.
            tokens: of the texts, `m` rows for each tower.
            owners: `(m,)`, the image of each text; None where text i is image i's.
            groups: `(n,)`, the product of each image.
            text_ids: `(n,)`, equal where the texts are.
            clusters: `(n,)`, of the texts, where there are projections for each.
        """
        seen = self._embed_images(images)
        read, logits = self.embedder.text_vectors(tokens, owners, len(images))
        loss = self.pairs(seen, read, groups, text_ids)
        parts = {"contrastive": loss.detach()}
        if logits is None or clusters is None:
            return loss, parts
        entropy = F.cross_entropy(logits.float(), clusters)
        parts["cluster"] = entropy.detach()
        # The contrastive loss is the mean of two cross-entropies, image → text and back.
        weight = self.cluster_weight
        return (2 * loss + weight * entropy) / (2 + weight), parts

    def _embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors, chunk by chunk where memory has to be saved.

        Each chunk's activations are dropped and computed again in the backward pass, when the
        gradient of its vectors is known: what gradient caching does (Gao et al., "Scaling Deep
        Contrastive Learning Batch Size under Memory Limited Setup", 2021), on autograd's own
        checkpoints. The random draws are the same both times.
        """
        if not self.chunk or len(images) <= self.chunk or not torch.is_grad_enabled():
            return F.normalize(self._images(images).float(), dim=1)
        parts = [
            checkpoint(self._images, part, use_reentrant=False, context_fn=self._contexts)
            for part in images.split(self.chunk)
        ]
        return F.normalize(torch.cat(parts).float(), dim=1)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Round the first pass, and round the second: batch norms count an image once."""
        return nullcontext(), statistics_held(self.embedder)


@contextmanager
def statistics_held(module: nn.Module) -> Iterator[None]:
    """Within it batch norms in training mode leave their running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    held = [
        (norm, norm.momentum, norm.num_batches_tracked, norm.num_batches_tracked.clone())
        for norm in norms
        if norm.training and norm.num_batches_tracked is not None
    ]
    for norm, *_ in held:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count, before in held:
            norm.momentum = momentum
            count.copy_(before)
