"""Images and texts to unit vectors of one space, whose inner product is their similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.model.embedder import Embedder
from visual_search.text.config import ProjectionConfig, TextConfig
from visual_search.text.pretrained_towers import (
    ClipFolderText,
    HuggingFaceText,
    open_clip_text,
)
from visual_search.text.projections import (
    ClusterProjections,
    ImageProjection,
    create_projection,
)
from visual_search.text.towers import (
    FrozenText,
    HashedNgrams,
    TextTower,
    TextTowers,
)

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
    cluster_classifier: Any = "linear"

    @classmethod
    def of(cls, text: TextConfig, projection: ProjectionConfig) -> TextArchitecture:
        """What of a phase's settings shapes the network."""
        tower = tuple(text.towers), text.tokens, text.pooling, text.buckets, text.dimension
        space = projection.kind, projection.dimension, projection.clusters
        named = projection.class_names != "none"
        return cls(*tower, *space, named, projection.cluster_classifier)

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
            cluster_classifier=self.cluster_classifier,
        )


class Float32UnitLength(nn.Module):
    """Rows of length 1 in float32, whatever precision the backbone runs in."""

    def forward(self, features: Tensor) -> Tensor:
        """`(n, width)`."""
        return F.normalize(features.float(), dim=1)


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
        projection = self.image_projection
        neck = nn.Sequential(nn.Identity() if projection.raw else Float32UnitLength(), projection)
        mean, std = (part.flatten().tolist() for part in (visual.mean / 255, visual.std / 255))
        embedder = Embedder(visual.backbone, neck, mean, std).to(visual.mean.device)
        return embedder.train(self.training)

    def features(self, images: Tensor) -> Tensor:
        """Images in the shared space, before normalisation, `(n, dimension)`.

        Args:
            images: pixels `(n, 3, H, W)`, 0..255, or unit vectors of the visual tower `(n, width)`.
        """
        projection = self.image_projection
        if images.ndim == 4:
            images = self.visual.features(images) if projection.raw else self.visual(images)
        return projection(images)

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
            projected, logits = projection(features, tokens)
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
    """Put the parts together: a visual tower of vectors `(n, width)`, text towers, projections.

    `files` is the folder of text towers that were saved with a model.
    """
    towers = create_text_towers(text, files)
    image = ImageProjection(width, projection)
    of_texts = (
        ClusterProjections(towers, projection)
        if projection.clusters > 1
        else create_projection(towers.dimension, projection)
    )
    return DualEncoder(visual, towers, image, of_texts)


def create_text_towers(text: TextConfig, files: Path | None = None) -> TextTowers:
    """Build text towers; out of `files`, which :meth:`TextTowers.save_files` wrote, offline.

    Raises:
        UserError: for an unknown name, or a tower that cannot be had.
    """
    if not text.towers:
        raise UserError(f"text.towers is empty; name one or several of {', '.join(TOWERS)}")
    made: dict[str, TextTower] = {}
    for number, name in enumerate(text.towers):
        kind = name.partition("/")[0]
        if kind not in TOWERS:
            raise UserError(f"text.towers: {name!r} is unknown; it can be {', '.join(TOWERS)}")
        if name in made:
            raise UserError(f"text.towers names {name!r} twice")
        saved = files / f"tower-{number}" if files else None
        made[name] = TOWERS[kind](name, text, saved if saved and saved.is_dir() else None)
    return TextTowers(made)


TOWERS: dict[str, Callable[[str, TextConfig, Path | None], TextTower]] = {
    "hashed": lambda _, text, __: HashedNgrams(
        text.buckets, text.dimension, alone=len(text.towers) == 1
    ),
    "use": lambda name, text, _: FrozenText(name, text.noise, text.dropout),
    "sentence-transformers": lambda name, text, _: FrozenText(name, text.noise, text.dropout),
    "open_clip": lambda name, text, _: open_clip_text(
        name.partition("/")[2], text.weights, text.tokens
    ),
    "clip": lambda name, text, files: ClipFolderText(
        files or Path(name.partition("/")[2]), text.weights, text.tokens
    ),
    "hf": lambda name, text, files: HuggingFaceText(
        name.partition("/")[2], text.weights, text.tokens, text.pooling, files
    ),
}
"""Builders by the first part of a name."""
