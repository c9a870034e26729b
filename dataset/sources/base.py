"""What a public data set is made of, and finding its files in what the user downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from visual_search.common.errors import UserError
from visual_search.common.files import read_text
from visual_search.data.dataset_info import InfoRow
from visual_search.data.image_files import is_image
from visual_search.data.images import Box

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")

# Lists and image folders are looked for this deep below what the user named, and not inside
# folders with more subfolders than this: those are class folders, up to 224,000 of them.
DEPTH, MOST_SUBFOLDERS = 4, 100


@dataclass(frozen=True)
class Download:
    """A file at an address that is public and has been the same for years."""

    url: str
    size: int | None = None
    """Bytes, where known."""
    md5: str = ""
    sha256: str = ""

    @property
    def name(self) -> str:
        """What the file is called on disk."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class DataSet:
    """A public data set, as it is offered for download."""

    title: str
    page: str
    """Where a person gets it."""
    layout: str
    """Its lists and image folders, in words for the person who looks for them."""
    read: Callable[[Files], Iterator[InfoRow]]
    """Rows without sizes, in the order of its lists; paths relative to the table, labels as they
    stand there."""
    columns: Sequence[str] = ()
    """Which optional columns its table has."""
    archives: Mapping[str, str] = field(default_factory=dict)
    """Names (with wildcards) of its archives, and what each holds; a source that has that
    already is not unpacked again."""
    downloads: Sequence[Download] = ()
    parts: Sequence[str] = ()
    """What `Files.part` may be, apart from "": all of it."""


class Files:
    """The lists and images of one data set below some folders."""

    def __init__(self, roots: Sequence[Path], table_folder: Path, layout: str) -> None:
        """Look below `roots`; the table's paths are relative to `table_folder`."""
        self.roots = [root.resolve() for root in roots]
        self.table_folder, self.layout = table_folder.resolve(), layout
        self.part = ""
        self._holders: dict[str, list[tuple[Path, str]]] = {}

    def has(self, name: str) -> bool:
        """Whether there is a file or folder `name`, which may be a path of several parts."""
        return any((folder / name).exists() for folder in self._folders)

    def archives(self, names: Iterable[str]) -> list[Path]:
        """The archives with these names, which may hold wildcards."""
        return [
            path
            for folder in self._folders
            for name in names
            for path in sorted(folder.glob(name))
            if path.is_file()
        ]

    def file(self, *names: str) -> Path:
        """The list with the first of these names that there is, or a UserError with the layout."""
        for name in names:
            for folder in self._folders:
                if (folder / name).is_file():
                    return folder / name
        raise self.missing(" or ".join(names))

    def image(self, name: str) -> str:
        """Path of an image relative to the table; `name` starts with one of the set's folders.

        Whether it exists is not asked: the reading of its size finds out. A UserError where there
        is no such folder at all.
        """
        head = name.partition("/")[0]
        if head not in self._holders:
            self._holders[head] = [
                (folder, os.path.relpath(folder, self.table_folder))
                for folder in self._folders
                if (folder / head).is_dir()
            ]
        holders = self._holders[head]
        if not holders:
            raise self.missing(f"the folder {head}/")
        if len(holders) > 1:
            # `MET/MET/1/0.jpg` is a usual outcome of unpacking, and so is one folder for each
            # archive: the image itself decides.
            for folder, base in holders:
                if (folder / name).is_file():
                    return f"{base}/{name}"
        return f"{holders[0][1]}/{name}"

    def class_images(self, name: str) -> Iterator[tuple[str, str]]:
        """Label and path of each `<name>/<class>/<image>`, in order of their text.

        Raises:
            UserError: when there is no such folder, or no image in it.
        """
        tops = [folder / name for folder in self._folders if (folder / name).is_dir()]
        if not tops:
            raise self.missing(f"the folder {name}/")
        # Of `train/train/<class>` the inner one is meant.
        inner = [top / top.name for top in tops if (top / top.name).is_dir()]
        found = False
        for top in inner or tops:
            base = os.path.relpath(top, self.table_folder)
            for label in _visible(top, directories=True):
                for image in _visible(top / label, directories=False):
                    if is_image(top / label / image):
                        found = True
                        yield label, f"{base}/{label}/{image}"
        if not found:
            raise UserError(
                f"no image is in the class folders of {tops[0]}; expected {self.layout}"
            )

    def missing(self, what: str) -> UserError:
        """The error for something that is not there."""
        places = " and ".join(map(str, self.roots))
        archives = [
            str(path)
            for root in self.roots
            for path in sorted(root.iterdir())
            if path.name.endswith(ARCHIVE_SUFFIXES)
        ]
        hint = f"; if it is in {archives[0]}, name that with --source" if archives else ""
        return UserError(f"{what} was not found below {places}; expected {self.layout}{hint}")

    @cached_property
    def _folders(self) -> list[Path]:
        """The roots and the folders below them, the nearest first."""
        found, level = [], self.roots
        for _ in range(DEPTH):
            found += level
            level = [folder / name for folder in level for name in _few_subfolders(folder)]
        return list(dict.fromkeys(found))


def _few_subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        found = (e.name for e in entries if e.is_dir() and not _hidden(e.name))
        names = list(islice(found, MOST_SUBFOLDERS + 1))
    return sorted(names) if len(names) <= MOST_SUBFOLDERS else []


def _visible(folder: Path, *, directories: bool) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_dir() == directories and not _hidden(entry.name)
        )


def _hidden(name: str) -> bool:
    # macOS puts `._photo.jpg` and a folder of its own into archives.
    return name.startswith(".") or name == "__MACOSX"


def split_lines(
    path: Path,
    fields: int,
    *,
    separator: str | None = None,
    header: str = "",
    counted: bool = False,
) -> Iterator[tuple[str, list[str]]]:
    """Place (file and line, for errors) and fields of each line of a UTF-8 text that is not empty.

    Args:
        fields: of a line.
        separator: None is any white space.
        header: what the first line must be, its words separated by one space; "": there is none.
        counted: whether the number of lines stands in front, as in DeepFashion's lists.

    Raises:
        UserError: for another header, number of fields or encoding, and more or fewer lines than
            announced.
    """
    announced = count = 0
    for number, line in enumerate(read_text(path).split("\n"), 1):
        text, place = line.strip(), f"{path} line {number}"
        if counted and number == 1:
            announced = whole_number(text, place, "the number of images")
        elif header and number == 1 + counted:
            if text.split() != header.split():
                raise UserError(f"{place} is {text!r}, expected {header!r}")
        elif text:
            parts = text.split(separator)
            if len(parts) != fields:
                raise UserError(f"{place} has {len(parts)} fields, not {fields}: {text!r}")
            count += 1
            yield place, parts
    if counted and count != announced:
        raise UserError(
            f"{path} announces {announced} images on line 1 but lists {count}: get it again"
        )


def whole_number(text: str, place: str, what: str) -> int:
    """`text` as an int; `60.0` is one too. A UserError names the place and what it should be."""
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{place}: {what} is {text!r}, not a whole number")


def pixels(texts: Sequence[str], place: str) -> list[int]:
    """Coordinates, rounded to whole pixels; a UserError names the place of what is no number."""
    try:
        return [round(float(text)) for text in texts]
    except (ValueError, OverflowError):
        raise UserError(f"{place}: the box is {' '.join(texts)!r}, not four numbers") from None


def box_of_corners(corners: Sequence[str], place: str) -> Box:
    """`x, y, w, h` of the corners `x1, y1, x2, y2`; see :func:`pixels`.

    One without an area is passed on: the image is then left out, and listed.
    """
    x1, y1, x2, y2 = pixels(corners, place)
    return x1, y1, x2 - x1, y2 - y1
