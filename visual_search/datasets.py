"""Training photos with class labels, as torch data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from visual_search.errors import UserError
from visual_search.images import ImageItem, UnreadableImage, read_photo
from visual_search.tables import integers, read_table


@dataclass(frozen=True)
class LabelledImages:
    """Photos of known classes."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    """`(n,)`, int64, 0..classes-1."""

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self, classes: int) -> np.ndarray:
        """Photos of each class, `(classes,)`, int64."""
        return np.bincount(self.labels, minlength=classes)


def read_product10k(folder: Path, table: str, prefix: str, classes: int) -> LabelledImages:
    """A list of Product10K: columns `name` and `class`, read by name; photos in `folder/prefix`.

    Raises:
        UserError: for a missing file, folder or column, a class that is no whole number in
            `0..classes-1`, and when no photo of the list exists; it names file and line.
    """
    if not folder.is_dir():
        raise UserError(
            f"the folder {folder} does not exist; put Product10K there, or name another folder "
            "with dataset.product10k.train_valid_root"
        )
    path = folder / table
    rows = read_table(path, ["name", "class"])
    labels = integers(rows, "class", path)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{path} line {row + 2}: class {labels[row]} does not fit "
            f"dataset.num_of_classes = {classes} (classes 0..{classes - 1})"
        )
    photos = folder / prefix
    if not photos.is_dir():
        raise UserError(f"the folder {photos} does not exist; {path} lists photos in it")
    paths = tuple(photos / name for name in rows["name"])
    if not paths:
        raise UserError(f"{path} lists no photo")
    if not any(path.exists() for path in paths[:1000]):
        raise UserError(f"none of the photos of {path} is in {photos}, for example {paths[0]}")
    return LabelledImages(paths, labels)


def joined(parts: Sequence[LabelledImages]) -> LabelledImages:
    """Several lists over the same classes as one."""
    paths = tuple(path for part in parts for path in part.paths)
    return LabelledImages(paths, np.concatenate([part.labels for part in parts]))


class TrainingImages(Dataset):
    """Augmented photos for training; the draw of each depends on (seed, epoch, index) alone.

    So neither the number of workers nor the order in which they finish changes a run. An
    unreadable photo is replaced by the next readable one in the list, and told.
    """

    def __init__(
        self, images: LabelledImages, augment: Callable[[Image.Image], Tensor], size: int, seed: int
    ) -> None:
        self.images, self.augment, self.size, self.seed = images, augment, size, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's draws; reaches workers that are already running."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, int]:
        """Pixels `(3, size, size)` uint8; label; `index`; how many unreadable photos came first."""
        for passed_over in range(len(self)):
            chosen = (index + passed_over) % len(self)
            try:
                photo = read_photo(ImageItem(self.images.paths[chosen]), self.size)
            except UnreadableImage:
                continue
            seed = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(seed[0]))
                pixels = self.augment(photo.image)
            return pixels, int(self.images.labels[chosen]), index, passed_over
        raise UserError("none of the training photos can be read")

    def unreadable(self, index: int, passed_over: int) -> list[Path]:
        """The photos that were passed over when `index` was asked for."""
        return [self.images.paths[(index + i) % len(self)] for i in range(passed_over)]
