"""A folder of photos as a tar file in parts: `cat <name>.tar.parta* | tar x` gives it back."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from string import ascii_lowercase

from visual_search.errors import UserError


def part_suffixes(letters: int = 2) -> Iterator[str]:
    """`aa`, `ab`, … as `split` names parts."""
    return ("".join(pair) for pair in product(ascii_lowercase, repeat=letters))


class _Parts(io.RawIOBase):
    """A file to write to that goes on in another part when one is full."""

    def __init__(self, stem: Path, size: int) -> None:
        self.size, self.written = size, 0
        self.parts: list[Path] = []
        self._names = (stem.with_name(f"{stem.name}.part{suffix}") for suffix in part_suffixes())
        self._handle: io.BufferedWriter | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        total = len(view)
        while len(view):
            if self._handle is None or self._handle.tell() == self.size:
                self._next()
            assert self._handle is not None
            share = view[: self.size - self._handle.tell()]
            self._handle.write(share)
            view = view[len(share) :]
        self.written += total
        return total

    def _next(self) -> None:
        self.finish()
        path = next(self._names, None)
        if path is None:
            raise UserError("more than 676 parts: choose larger ones with --part-size")
        self.parts.append(path)
        self._handle = temporary_name(path).open("wb")

    def finish(self) -> None:
        """Flush the part that is being written to the disk."""
        if self._handle is not None:
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()
            self._handle = None


def temporary_name(path: Path) -> Path:
    """Of a part that is not finished."""
    return path.with_name(f".{path.name}.tmp")


def pack(root: Path, files: Iterable[str], stem: Path, part_size: int) -> list[Path]:
    """Write files as `<stem>.partaa`, `<stem>.partab`, …; the same files give the same bytes.

    Args:
        root: folder of the files; its name stands in front of theirs in the archive.
        files: relative to `root`.
        stem: of the parts, such as `images_mean_50k_800.tar`. Parts of an earlier call are
            replaced.
        part_size: bytes of every part but the last.

    Raises:
        UserError: when a file is missing or there would be too many parts.
    """
    if part_size < 1:
        raise UserError(f"--part-size is {part_size} bytes; it must be above 0")
    stem.parent.mkdir(parents=True, exist_ok=True)
    _remove_parts(stem, temporary_name)  # of a killed call
    parts = _Parts(stem, part_size)
    try:
        with tarfile.open(fileobj=parts, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for file in sorted(files):
                _add(archive, root, file)
        parts.finish()
    except BaseException:
        for path in parts.parts:
            temporary_name(path).unlink(missing_ok=True)
        raise
    # Old and new parts never lie side by side, and the first part comes last: whoever meets the
    # parts of a call that was killed here sees that it is missing.
    _remove_parts(stem)
    for path in reversed(parts.parts):
        temporary_name(path).replace(path)
    return parts.parts


def _add(archive: tarfile.TarFile, root: Path, file: str) -> None:
    # Nothing of this machine or moment goes into the archive.
    entry = tarfile.TarInfo(f"{root.name}/{file}")
    entry.mode = 0o644
    try:
        with (root / file).open("rb") as handle:
            entry.size = os.fstat(handle.fileno()).st_size
            archive.addfile(entry, handle)
    except FileNotFoundError:
        raise UserError(f"{root / file} does not exist; run download_images.py again") from None


def _remove_parts(stem: Path, named: Callable[[Path], Path] = lambda path: path) -> None:
    """Remove the parts of an earlier archive, the first one first.

    Args:
        stem: of the parts.
        named: the name that each of them goes by.
    """
    for suffix in part_suffixes():  # all of them: a killed call leaves gaps
        named(stem.with_name(f"{stem.name}.part{suffix}")).unlink(missing_ok=True)
