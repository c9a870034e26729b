"""Training on the features of a frozen backbone: each image goes through it once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.data.datasets import TrainingImages
from visual_search.data.image_files import UnreadableImage, stored_size
from visual_search.data.images import Box, ImageItem
from visual_search.ranking.store import Features

# What load_pixels says of an image of which there is nothing to see.
_NOTHING = "a grey image is used"


class FrozenFeatures(TrainingImages):
    """As :class:`TrainingImages`, with features in place of pixels, of a whole batch at once.

    Each image may have several views, the first of which is the whole image, the others random
    crops of it; which one is shown depends on (seed, epoch, index) alone. An image that cannot be
    read has a stand-in. A loader asks for `__getitems__` where there is one.
    """

    def __init__(self, shown: TrainingImages, views: int = 1) -> None:
        """
        Args:
            shown: the images, in their order; nothing can be read before :meth:`fill`.
            views: of each image, 1 or more.
        """
        super().__init__(shown.images, shown.augment, shown.size, shown.seed)
        self.views = views
        self.matrix = torch.zeros(0, views, 0)
        """`(n, views, width)`, float32."""
        self.labels = torch.from_numpy(self.images.labels)
        self._substitute = torch.arange(len(self))
        self._n_skipped = torch.zeros(len(self), dtype=torch.int64)

    def items(self) -> list[ImageItem]:
        """What there have to be features of: the views of each image, one after the other."""
        wholes = [self.images.item(row) for row in range(len(self))]
        return [
            ImageItem(item.path, random_crop(item, view, self.seed)) if view else item
            for item in wholes
            for view in range(self.views)
        ]

    def fill(self, features: Features) -> None:
        """Take the features of :meth:`items`.

        Raises:
            UserError: when no image can be read.
        """
        self.matrix = features.matrix.unflatten(0, (-1, self.views))
        unread = np.array([reason.endswith(_NOTHING) for reason in features.reasons])
        broken = np.asarray(unread.reshape(-1, self.views).any(axis=1))
        if broken.all():
            raise UserError("none of the training images can be read")
        for row in np.flatnonzero(broken).tolist():
            for n_skipped, other in enumerate(self.substitutes(row)):
                if not broken[other]:
                    self._substitute[row], self._n_skipped[row] = other, n_skipped
                    break

    def shown(self) -> Tensor:
        """The whole images' features, `(n, width)`, stand-ins in the place of unreadable ones."""
        whole = self.matrix[:, 0]
        return whole[self._substitute] if self._n_skipped.any() else whole

    def __getitems__(self, indexes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features `(N, width)`, labels, images, how many unreadable ones came first, `(N,)`."""
        wanted = torch.as_tensor(indexes) % len(self)
        shown, views = self._substitute[wanted], torch.zeros_like(wanted)
        if self.views > 1:
            seeds = [np.random.SeedSequence([self.seed, int(self.epoch), i]) for i in indexes]
            views = torch.tensor([int(seed.generate_state(1)[0]) % self.views for seed in seeds])
        return self.matrix[shown, views], self.labels[shown], wanted, self._n_skipped[wanted]


SMALLEST_CROP, WIDEST_CROP = 0.4, 4 / 3
"""Share of the image's area in a crop at the least, and its width to height at the most."""


def random_crop(item: ImageItem, view: int, seed: int) -> Box | None:
    """A random part of an image; the whole one where its size cannot be told.

    As torchvision's RandomResizedCrop draws it, of the image's own box where it has one.

    Args:
        item: the image.
        view: its number; each has another crop.
        seed: of the draw, with the image's name and the view.
    """
    try:
        left, top, width, height = item.box or (0, 0, *stored_size(item.path))
    except UnreadableImage:
        return item.box
    draw = np.random.default_rng([seed, view, *item.path.name.encode()])
    area = width * height * draw.uniform(SMALLEST_CROP, 1.0)
    shape = math.exp(draw.uniform(-math.log(WIDEST_CROP), math.log(WIDEST_CROP)))
    w = min(max(round(math.sqrt(area * shape)), 1), width)
    h = min(max(round(math.sqrt(area / shape)), 1), height)
    x = left + int(draw.integers(width - w + 1))
    y = top + int(draw.integers(height - h + 1))
    return x, y, w, h
