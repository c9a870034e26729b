"""Training photos as features that were computed once, each whole and in random crops.

Where the visual tower is frozen, an epoch over features takes a second instead of minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.data.datasets import TrainingImages
from visual_search.data.images import Box, ImageItem
from visual_search.embed_settings import EmbedSettings
from visual_search.model.embedder import Embedder
from visual_search.ranking.embed import Embeddings, embed_images
from visual_search.store import (
    Features,
    model_folder,
    stored_features,
    weights_fingerprint,
)

# What is said of a photo of which there is nothing to see.
NOTHING_SEEN = "a grey image is used"
SMALLEST_CROP, WIDEST_CROP = 0.4, 4 / 3
"""Share of the photo's area in a crop at the least, and its width to height at the most."""


class CachedViews(TrainingImages):
    """As :class:`TrainingImages`, with a view's features in place of pixels.

    Which view is shown depends on (seed, epoch, index) alone. View 0 is the whole photo.
    """

    def __init__(self, photos: TrainingImages, views: int) -> None:
        """
        Args:
            photos: what is shown; nothing can be read before :meth:`fill`.
            views: of each photo, 1 or more.
        """
        super().__init__(photos.images, photos.augment, photos.size, photos.seed)
        self.views = views
        self.features = torch.zeros(0, views, 0)
        """`(n, views, width)`, float32."""
        self.broken: np.ndarray = np.zeros(len(photos), dtype=bool)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, int]:
        """Features `(width,)`; label; photo; how many unreadable photos came first."""
        wanted = index % len(self)
        for n_skipped, chosen in enumerate(self.substitutes(wanted)):
            if self.broken[chosen]:
                continue
            state = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1)
            view = int(state[0]) % self.views
            return self.features[chosen, view], int(self.images.labels[chosen]), wanted, n_skipped
        raise UserError("none of the training photos can be read")

    def fill(
        self,
        visual: Embedder,
        input_size: int,
        folder: Path,
        *,
        device: torch.device,
        progress: bool = True,
    ) -> None:
        """Embed each photo and its crops, or read from the store what was embedded before.

        Args:
            visual: the frozen tower, in evaluation mode, on `device`.
            input_size: side in pixels at which it sees them.
            folder: of all stores.
            device: where the tower is.
            progress: whether there are progress bars.
        """
        wholes = [self.images.item(i) for i in range(len(self))]
        items = [
            ImageItem(item.path, random_crop(item, view, self.seed)) if view else item
            for item in wholes
            for view in range(self.views)
        ]
        found = kept_features(visual, items, input_size, folder, device, progress)
        self.features = found.matrix.unflatten(0, (-1, self.views))
        unread = np.array([reason.endswith(NOTHING_SEEN) for reason in found.reasons])
        self.broken = np.asarray(unread.reshape(-1, self.views).any(axis=1))


def kept_features(
    visual: Embedder,
    items: Sequence[ImageItem],
    input_size: int,
    folder: Path,
    device: torch.device,
    progress: bool = True,
) -> Features:
    """Photos as a frozen tower sees them, from the store where they were seen before.

    Args:
        visual: the tower, in evaluation mode, on `device`.
        items: the photos.
        input_size: side in pixels.
        folder: of all stores.
        device: where the tower is.
        progress: whether there are progress bars.
    """
    settings = {"size": input_size, "device": device.type}
    place = model_folder(folder, weights_fingerprint(visual.state_dict()), settings)

    def make(some: Sequence[ImageItem], part: str) -> Embeddings:
        return embed_images(
            visual,
            some,
            input_size,
            device=device,
            settings=EmbedSettings().unmeasured(device.type == "cuda"),
            label=f"photos{part}",
            progress=progress,
        )

    return stored_features(place, items, make)


def random_crop(item: ImageItem, view: int, seed: int) -> Box | None:
    """A random part of a photo; the whole one where its size cannot be told.

    As torchvision's RandomResizedCrop draws it, of the photo's own box where it has one.

    Args:
        item: the photo.
        view: its number; each has another crop.
        seed: of the draw, with the photo's name and the view.
    """
    try:
        with Image.open(item.path) as photo:
            left, top, width, height = item.box or (0, 0, *photo.size)
    except (OSError, ValueError, SyntaxError):
        return item.box
    draw = np.random.default_rng([seed, view, *item.path.name.encode()])
    area = width * height * draw.uniform(SMALLEST_CROP, 1.0)
    shape = math.exp(draw.uniform(-math.log(WIDEST_CROP), math.log(WIDEST_CROP)))
    w = min(max(round(math.sqrt(area * shape)), 1), width)
    h = min(max(round(math.sqrt(area / shape)), 1), height)
    x = left + int(draw.integers(width - w + 1))
    y = top + int(draw.integers(height - h + 1))
    return x, y, w, h
