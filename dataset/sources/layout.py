"""What a public data set is made of, and finding its files in what the user downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from visual_search.dataset_info import InfoRow
from visual_search.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

# Lists and photo folders are looked for this deep below what the user named, and not inside
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

    name: str
    """On the command line, and in front of its labels."""
    title: str
    page: str
    """Where a person gets it."""
    layout: str
    """Its lists and photo folders, in words for the person who looks for them."""
    read: Callable[[Files], Iterator[InfoRow]]
    """Rows without sizes, in the order of its lists; paths relative to the table."""
    columns: Sequence[str] = ()
    """Which optional columns its table has."""
    archives: Mapping[str, str] = field(default_factory=dict)
    """Names (with wildcards) of its archives, and what each holds; a source that has that
    already is not unpacked again."""
    downloads: Sequence[Download] = ()
    parts: Sequence[str] = ()
    """What `Files.part` may be, apart from "": all of it."""


class Files:
    """The lists and photos of one data set below some folders."""

    def __init__(self, roots: Sequence[Path], table_folder: Path, layout: str) -> None:
        """
        Args:
            roots: what the user has, and what was unpacked.
            table_folder: what the paths of the table are relative to.
            layout: see :class:`DataSet`.
        """
        self.roots = [root.resolve() for root in roots]
        self.table_folder, self.layout = table_folder.resolve(), layout
        self.part = ""
        self._holders: dict[str, list[tuple[Path, str]]] = {}

    def has(self, name: str) -> bool:
        """Whether there is a file or folder `name`, which may be a path of several parts."""
        return any((folder / name).exists() for folder in self._folders)

    def archives(self, holdings: Mapping[str, str], wanted: Callable[[str], bool]) -> list[Path]:
        """The archives with the given names (which may have wildcards).

        Args:
            holdings: what each holds, by its name.
            wanted: whether archives with that are wanted.
        """
        names = [name for name, held in holdings.items() if wanted(held)]
        return [
            path
            for folder in self._folders
            for name in names
            for path in sorted(folder.glob(name))
            if path.is_file()
        ]

    def file(self, *names: str) -> Path:
        """The list with the first of these names that there is.

        Raises:
            UserError: when there is none, with the layout that is expected.
        """
        for name in names:
            for folder in self._folders:
                if (folder / name).is_file():
                    return folder / name
        raise self.missing(" or ".join(names))

    def photo(self, name: str) -> str:
        """Path of a photo relative to the table; `name` starts with one of the set's folders.

        Whether the photo exists is not asked: the reading of its size finds out.

        Raises:
            UserError: when there is no such folder at all.
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
            # archive: the photo itself decides.
            for folder, base in holders:
                if (folder / name).is_file():
                    return f"{base}/{name}"
        return f"{holders[0][1]}/{name}"

    def class_photos(self, name: str) -> Iterator[tuple[str, str]]:
        """Label and path relative to the table of `<name>/<class>/<photo>`, in order of their text.

        Raises:
            UserError: when there is no such folder, or no photo in it.
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
                for photo in _visible(top / label, directories=False):
                    if photo.lower().endswith(PHOTO_SUFFIXES):
                        found = True
                        yield label, f"{base}/{label}/{photo}"
        if not found:
            raise UserError(f"no photo is in the class folders of {tops[0]}; {self._expected}")

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
        return UserError(f"{what} was not found below {places}; {self._expected}{hint}")

    @property
    def _expected(self) -> str:
        return f"expected {self.layout}"

    @cached_property
    def _folders(self) -> list[Path]:
        """The roots and the folders below them, the nearest first."""
        found, level = [], self.roots
        for _ in range(DEPTH):
            found += level
            level = [folder / name for folder in level for name in _few_subfolders(folder)]
        return list(dict.fromkeys(found))


def _few_subfolders(folder: Path) -> list[str]:
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not _hidden(entry.name):
                    names.append(entry.name)
                    if len(names) > MOST_SUBFOLDERS:
                        return []
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from error
    return sorted(names)


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
