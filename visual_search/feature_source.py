"""Photos to a model's embeddings, or to its backbone's features, through the store on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from visual_search.embed import Embeddings, embed_images
from visual_search.embed_settings import EmbedSettings
from visual_search.feature_store import (
    Features,
    Make,
    model_folder,
    stored_features,
    weights_fingerprint,
)
from visual_search.images import ImageItem
from visual_search.model import Architecture, Embedder

# Settings that change no number here: another runtime is never taken, and a photo's place among
# the threads does not matter.
_WITHOUT_EFFECT = ("backend", "min_cosine", "workers")


class Backbone(Embedder):
    """An embedder whose answer is the features in front of its neck, at their own length."""

    def __init__(self, embedder: Embedder) -> None:
        nn.Module.__init__(self)
        self.backbone, self.neck = embedder.backbone, nn.Identity()
        self.register_buffer("mean", embedder.mean)
        self.register_buffer("std", embedder.std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features `(N, width)`, float32, of pixels `(N, 3, H, W)`, 0..255."""
        return self.features(pixels).float()


class FeatureSource:
    """A model, ready to embed whatever the store does not have."""

    def __init__(
        self,
        model: Embedder,
        architecture: Architecture,
        settings: EmbedSettings,
        cache: Path,
        device: torch.device,
        progress: bool = True,
    ) -> None:
        """
        Args:
            model: an embedder, or the :class:`Backbone` of one; it goes to `device`.
            architecture: of the embedder.
            settings: of the embedding; nothing in them is measured, so that the same photos give
                the same numbers.
            cache: folder of all stores.
            device: where the model runs.
            progress: whether there are progress bars and lines.
        """
        self.model, self.device, self.progress = model.to(device).eval(), device, progress
        self.size = architecture.input_size
        self.settings = settings.unmeasured(device.type == "cuda")
        part: nn.Module = model
        if isinstance(model, Backbone):  # the neck has no part in its features
            part, architecture = model.backbone, replace(architecture, neck="none", dimension=0)
        embedding = asdict(self.settings)
        for name in _WITHOUT_EFFECT:
            del embedding[name]
        facts = {
            "architecture": asdict(architecture),
            "device": device.type,
            "embedding": embedding,
            "kind": type(model).__name__,
        }
        self.folder = model_folder(cache, weights_fingerprint(part.state_dict()), facts)

    def features(self, items: Sequence[ImageItem], label: str) -> Features:
        """Of each photo, in their order; `label` is what the photos are called."""
        found = stored_features(self.folder, items, self._embed_as(label))
        if self.progress:
            before = len(items) - found.made
            print(f"{len(items)} {label}: {before} at hand, {found.made} embedded", flush=True)
        return found

    def _embed_as(self, label: str) -> Make:
        def embed(photos: Sequence[ImageItem], part: str) -> Embeddings:
            return embed_images(
                self.model,
                photos,
                self.size,
                device=self.device,
                settings=self.settings,
                label=label + part,
                progress=self.progress,
            )

        return embed
