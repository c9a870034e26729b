"""Images and texts to unit vectors of one space, whose inner product is their similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.model.embedder import Embedder
from visual_search.text.config import ProjectionConfig, TextConfig
from visual_search.text.pretrained_towers import (
    HuggingFaceText,
    clip_folder_text,
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

TOWERS = ("hashed", "use", "sentence-transformers", "open_clip", "clip", "hf")
"""First parts of their names."""
TEXT_BATCH = 256
"""Texts that are embedded at once."""


def network_facts(text: TextConfig, projection: ProjectionConfig) -> dict[str, Any]:
    """What of a phase's settings shapes the network: `text` of `model.json`."""
    return {
        "towers": list(text.towers),
        "tokens": text.tokens,
        "pooling": text.pooling,
        "buckets": text.buckets,
        "hashed_dimension": text.dimension,
        "projection": projection.kind,
        "dimension": projection.dimension,
        "clusters": projection.clusters,
        "class_names": projection.class_names != "none",
        "cluster_classifier": projection.cluster_classifier,
    }


def network_settings(facts: Mapping[str, Any]) -> tuple[TextConfig, ProjectionConfig]:
    """The settings that build the network of :func:`network_facts`, with random weights.

    Raises:
        KeyError, TypeError: when the facts are none.
    """
    text = TextConfig(
        towers=tuple(facts["towers"]),
        tokens=facts["tokens"],
        pooling=facts["pooling"],
        buckets=facts["buckets"],
        dimension=facts["hashed_dimension"],
    )
    return text, ProjectionConfig(
        kind=facts["projection"],
        dimension=facts["dimension"],
        clusters=facts["clusters"],
        class_names="imagenet" if facts["class_names"] else "none",
        cluster_classifier=facts.get("cluster_classifier", "linear"),
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
        width: int,
        text: TextConfig,
        projection: ProjectionConfig,
        files: Path | None = None,
    ) -> None:
        """
        Args:
            visual: the visual tower.
            width: of its vectors.
            text: the text towers.
            projection: from both into the shared space.
            files: folder of text towers that were saved with a model.

        Raises:
            UserError: for a text tower that is unknown or cannot be had.
        """
        super().__init__()
        towers = create_text_towers(text, files)
        of_images = ImageProjection(width, projection)
        if projection.clusters > 1:
            of_texts: nn.Module = ClusterProjections(towers, projection)
        else:
            of_texts = create_projection(towers.dimension, projection)
        # Named as in an image embedder: the loop trains them at the backbone's and the head's rate.
        self.backbone = nn.ModuleDict({"visual": visual, "text": towers})
        self.neck = nn.ModuleDict({"photo": of_images, "text": of_texts})

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


def create_text_towers(text: TextConfig, files: Path | None = None) -> TextTowers:
    """Build text towers; out of `files`, which :meth:`TextTowers.save_files` wrote, offline.

    Raises:
        UserError: for an unknown name, or a tower that cannot be had.
    """
    if not text.towers:
        raise UserError(f"text.towers is empty; name one or several of {', '.join(TOWERS)}")
    made: dict[str, TextTower] = {}
    for number, name in enumerate(text.towers):
        if name in made:
            raise UserError(f"text.towers names {name!r} twice")
        saved = files / f"tower-{number}" if files else None
        made[name] = _text_tower(name, text, saved if saved and saved.is_dir() else None)
    return TextTowers(made)


def _text_tower(name: str, text: TextConfig, saved: Path | None) -> TextTower:
    kind, _, model = name.partition("/")
    if kind == "hashed":
        return HashedNgrams(text.buckets, text.dimension, alone=len(text.towers) == 1)
    if kind in ("use", "sentence-transformers"):
        return FrozenText(name, text.noise, text.dropout)
    if kind == "open_clip":
        return open_clip_text(model, text.weights, text.tokens)
    if kind == "clip":
        return clip_folder_text(saved or Path(model), text.weights, text.tokens)
    if kind == "hf":
        return HuggingFaceText(model, text.weights, text.tokens, text.pooling, saved)
    raise UserError(f"text.towers: {name!r} is unknown; it can be {', '.join(TOWERS)}")
