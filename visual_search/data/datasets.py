"""Training images with class labels: read from tables, joined, and as torch data sets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from visual_search.common.errors import UserError
from visual_search.common.files import write_text
from visual_search.data.image_files import UnreadableImage
from visual_search.data.images import ImageItem, read_region
from visual_search.data.schema import integers
from visual_search.data.tables import (
    as_box,
    boxes,
    image_names,
    read_common_table,
    read_table,
    tell,
    training_rows,
)

# A handful of broken images at the start of a run says nothing about the share.
ALWAYS_ALLOWED = 10


class PathList(Sequence[Path]):
    """Paths in one array of text: 16 bytes each beyond the names.

    Millions of `Path` objects would take gigabytes, and again in every worker process that
    touches their reference counts.
    """

    def __init__(self, names: Iterable[str | Path]) -> None:
        """Keep the names; a UserError for one that no text can hold."""
        try:
            self._names = np.array([str(name) for name in names], dtype=np.dtypes.StringDType())
        except UnicodeEncodeError as error:
            raise UserError(f"the name {error.object!r} is not UTF-8: rename it") from error

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        """A path, or a list of those of a slice."""
        names = self._names[index]
        return list(map(Path, names.tolist())) if isinstance(index, slice) else Path(names)

    @classmethod
    def concatenated(cls, parts: Iterable[Sequence[Path]]) -> PathList:
        """One or more sequences of paths, one behind the other."""
        whole = cls(())
        lists = [part if isinstance(part, PathList) else cls(part) for part in parts]
        whole._names = np.concatenate([part._names for part in lists])
        return whole


@dataclass(frozen=True)
class LabelledImages:
    """Images of known classes."""

    paths: Sequence[Path]
    labels: np.ndarray
    """`(n,)`, int64, 0..classes-1."""
    boxes: np.ndarray | None = None
    """`(n, 4)`, int64: x, y, width, height in pixels of the stored image; width 0: no box."""
    class_names: tuple[str, ...] = ()
    """Of class 0, 1, …, as the tables call them; empty where they are not known."""
    sources: np.ndarray | None = None
    """`(n,)`, int64: which part of :func:`combined` an image is from; None where there is one."""
    source_weights: tuple[float, ...] = (1.0,)
    """Of source 0, 1, …: how often each of its images is drawn in an epoch, on average."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def classes(self) -> int:
        """The number of classes, those without an image included."""
        return len(self.class_names) or int(self.labels.max(initial=-1)) + 1

    def counts(self, classes: int) -> np.ndarray:
        """Images of each class, `(classes,)`, int64."""
        return np.bincount(self.labels, minlength=classes)

    def weights(self) -> Tensor | None:
        """How often each image is drawn in an epoch, `(n,)`; None where there is one source."""
        if self.sources is None:
            return None
        return torch.tensor(self.source_weights)[torch.from_numpy(self.sources)]

    def item(self, index: int) -> ImageItem:
        """Image `index` with its box."""
        given = None if self.boxes is None else as_box(self.boxes[index].tolist())
        return ImageItem(self.paths[index], given if given and given[2] else None)


def read_product10k(folder: Path, lists: Iterable[tuple[str, str]], classes: int) -> LabelledImages:
    """Lists of Product10K, which number the same classes: columns `name` and `class`, by name.

    Args:
        folder: where it lies.
        lists: of each the csv file and the folder of its images.
        classes: how many there are.

    Raises:
        UserError: for a missing file, folder or column, a class that is no whole number in
            `0..classes-1`, and when no image of a list exists; it names file and line.
    """
    if not folder.is_dir():
        raise UserError(
            f"the folder {folder} does not exist; put Product10K there, or name another folder "
            "with dataset.product10k.train_valid_root"
        )
    paths: list[PathList] = []
    labels: list[np.ndarray] = []
    for table, prefix in lists:
        path, images = folder / table, folder / prefix
        rows = read_table(path, ["name", "class"])
        numbers = integers(rows, "class", path)
        outside = np.flatnonzero((numbers < 0) | (numbers >= classes))
        if len(outside):
            row = int(outside[0])
            raise UserError(
                f"{path} line {rows.index[row]}: class {numbers[row]} does not fit "
                f"dataset.num_of_classes = {classes} (classes 0..{classes - 1})"
            )
        if not images.is_dir():
            raise UserError(f"the folder {images} does not exist; {path} lists images in it")
        listed = PathList(os.path.join(images, name) for name in rows["name"])
        missing = check_some_exist(listed, path, images)
        tell(f"{path}: {len(listed)} images of {len(np.unique(numbers))} classes{missing}")
        paths.append(listed)
        labels.append(numbers)
    names = tuple(map(str, range(classes)))
    return LabelledImages(PathList.concatenated(paths), np.concatenate(labels), class_names=names)


def read_training_table(
    file: Path, root: Path | None = None, *, fold: int = -1, name: str | None = None
) -> LabelledImages:
    """The training images of a table; rows of a test split never come along.

    The columns say what it is: `image_path, label` are Amazon pairs; `file_name, label` with any
    of `bbox` (`x,y,w,h` in pixels of the stored image; empty is the whole image), `is_test`
    (0 or 1), `evaluation_status` (train, query, gallery or test) and `fold` (-1 always trains,
    -2 never, 0 and above are the folds) are the common table. Other columns are ignored.

    Args:
        file: the csv file.
        root: folder that its paths are relative to; None is the file's own.
        fold: the fold that is held out of the training; -1 trains on all of them.
        name: of the data set, put in front of the names of its classes (`name/label`).

    Returns:
        The images; classes are the labels that train, numbered 0, 1, … in the order of their
        text, which `class_names` gives back.

    Raises:
        UserError: naming file and column or line: a missing column, an empty path or label, a
            box or a number that is none, a fold that the table does not have, a table without
            any row that trains, and when no image of it exists.
    """
    table = read_common_table(file)
    trains = training_rows(table, file, fold)
    if not trains.any():
        raise UserError(
            f"{file} has no row to train on"
            + (f": all of its {len(table)} rows are test rows" if len(table) else "")
        )
    n_rows, table = len(table), table[trains]
    given = boxes(table)
    folder = file.parent if root is None else root
    paths = PathList(os.path.join(folder, path) for path in image_names(table))
    missing = check_some_exist(paths, file, folder)
    numbers, labels = pd.factorize(table["label"], sort=True)
    tell(f"{file}: {n_rows} rows, {len(paths)} train, {len(labels)} classes{missing}")
    prefix = f"{name}/" if name else ""
    return LabelledImages(
        paths,
        numbers.astype(np.int64),
        given if given.any() else None,
        tuple(f"{prefix}{label}" for label in labels),
    )


def check_some_exist(paths: Sequence[Path], table: Path, folder: Path) -> str:
    """Refuse a list without images, or one most of whose images are absent.

    One to two thousand images spread over the list are looked for.

    Returns:
        What to add to a sentence about the list: how many of them are missing; empty for none.

    Raises:
        UserError: naming the table, and the folder in which its images were looked for.
    """
    if not paths:
        raise UserError(f"{table} lists no image")
    looked_for = paths[:: max(len(paths) // 1000, 1)]
    absent = [path for path in looked_for if not os.path.exists(path)]
    if len(absent) == len(looked_for):
        raise UserError(
            f"none of the images of {table} is in {folder}, for example {absent[0]}"
            + (": write / in place of \\ in its paths" if "\\" in str(absent[0]) else "")
        )
    if len(absent) > len(looked_for) / 2:
        raise UserError(
            f"{len(absent)} of {len(looked_for)} images of {table} are not in {folder}, for "
            f"example {absent[0]}; python dataset/check_table.py {table} lists them"
        )
    return f"; {len(absent)} of {len(looked_for)} looked for are missing" if absent else ""


def combined(parts: Sequence[LabelledImages], weights: Sequence[float]) -> LabelledImages:
    """Data sets over different classes as one: each one's classes are numbered behind the last's.

    The first keeps its own numbers, so Product10K's classes stay 0..num_of_classes-1.

    Args:
        parts: the data sets.
        weights: of each, above 0: how often each of its images is drawn in an epoch.
    """
    offsets = np.cumsum([0, *(part.classes for part in parts)])
    names = [part.class_names or tuple(map(str, range(part.classes))) for part in parts]
    boxes = None
    if any(part.boxes is not None for part in parts):
        without = [np.zeros((len(part), 4), dtype=np.int64) for part in parts]
        boxes = np.concatenate(
            [
                zeros if part.boxes is None else part.boxes
                for part, zeros in zip(parts, without, strict=True)
            ]
        )
    return LabelledImages(
        PathList.concatenated(part.paths for part in parts),
        np.concatenate([part.labels + o for part, o in zip(parts, offsets[:-1], strict=True)]),
        boxes,
        tuple(itertools.chain.from_iterable(names)),
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        tuple(weights),
    )


class TrainingImages(Dataset):
    """Augmented images for training; the draw of each depends on (seed, epoch, index) alone.

    So neither the number of workers nor the order in which they finish changes a run. An index
    past the end is an image once more: `index % n` with another draw. An unreadable image is
    replaced by the next readable one of its class, or else of the list, and told.
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
        """Pixels `(3, size, size)` uint8; label; image; how many unreadable ones came first.

        The image is `index % n`, also where another one stands in for it; the label is that of
        the one shown.
        """
        wanted = index % len(self)
        for n_skipped, chosen in enumerate(self.substitutes(wanted)):
            try:
                photo = read_region(self.images.item(chosen), self.size)
            except UnreadableImage:
                continue
            seed = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1)
            with torch.random.fork_rng(devices=()):
                # torch.manual_seed seeds every device: a tenth of the time of reading an image.
                torch.default_generator.manual_seed(int(seed[0]))
                pixels = self.augment(photo)
            return pixels, int(self.images.labels[chosen]), wanted, n_skipped
        raise UserError("none of the training images can be read")

    def unreadable(self, index: int, n_skipped: int) -> list[Path]:
        """The images that were passed over when `index` was asked for."""
        passed = itertools.islice(self.substitutes(index % len(self)), n_skipped)
        return [self.images.paths[chosen] for chosen in passed]

    def substitutes(self, wanted: int) -> Iterator[int]:
        """`wanted`, then the others of its class from there on, then all of other classes."""
        yield wanted
        others = np.roll(np.arange(len(self)), -wanted)[1:]
        same = self.images.labels[others] == self.images.labels[wanted]
        yield from np.concatenate([others[same], others[~same]]).tolist()


class ReplacedImages:
    """Which training images were replaced by others because they could not be read."""

    def __init__(self, images: TrainingImages, max_share: float) -> None:
        """
        Args:
            images: what the batches are drawn from.
            max_share: of the images read so far, 0..1; more stop the run.
        """
        self.images, self.max_share = images, max_share
        self.seen = 0
        self.broken: set[str] = set()

    def see(self, indexes: Tensor, n_skipped: Tensor) -> None:
        """Take note of a batch.

        Args:
            indexes: `(N,)`, the images that were asked for.
            n_skipped: `(N,)`, how many unreadable ones were met before one could be read.

        Raises:
            UserError: with examples, above the limit.
        """
        self.seen += len(indexes)
        for i in n_skipped.nonzero().flatten().tolist():
            paths = self.images.unreadable(int(indexes[i]), int(n_skipped[i]))
            self.broken.update(str(path) for path in paths)
        if len(self.broken) > max(self.max_share * self.seen, ALWAYS_ALLOWED):
            examples = ", ".join(sorted(self.broken)[:3])
            raise UserError(
                f"{len(self.broken)} of {self.seen} training images cannot be read, for example "
                f"{examples}; repair them, or raise dataset.max_broken_share"
            )

    def write(self, path: Path) -> None:
        """List them in a file and say so, where there are any."""
        if self.broken:
            write_text(path, "".join(f"{name}\n" for name in sorted(self.broken)))
            print(f"{len(self.broken)} unreadable training images were replaced: see {path}")

    def state_dict(self) -> dict[str, object]:
        """What a continued run has to know."""
        return {"seen": self.seen, "broken": sorted(self.broken)}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.seen, self.broken = int(state["seen"]), set(state["broken"])
