"""Archives that were split into parts, read as one stream; no joined file is written."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from visual_search.errors import UserError

# `split` names parts aa, ab, … or 00, 01, …; other tools 1, 2, …
_PART = re.compile(r"^(?P<stem>.+)\.part(?P<number>[a-z]+|[0-9]+)$")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def find_parts(stem: Path) -> list[Path]:
    """The parts of an archive in their order.

    Args:
        stem: what stands in front of `.part…`, with or without `.tar` and the like; one of the
            parts will do as well.

    Raises:
        UserError: when there is none, when one is missing in the sequence (it is named), is an
            LFS pointer or empty, or differs in size from the others but the last.
    """
    match = _PART.match(stem.name)
    if match:
        stem = stem.with_name(match["stem"])
    folder = stem.parent
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _PART.match(path.name)
        if match and (match["stem"] == stem.name or match["stem"].startswith(f"{stem.name}.t")):
            groups.setdefault(match["stem"], {})[match["number"]] = path
    if not groups:
        raise UserError(f"{folder} has no part {stem.name}.part… (or {stem.name}.tar.part…)")
    if len(groups) > 1:
        raise UserError(f"{' and '.join(sorted(groups))} are both there: name the one you mean")
    numbers = next(iter(groups.values()))
    ordered = sorted(numbers, key=lambda number: _ordinal(number))
    parts = [numbers[number] for number in ordered]
    _refuse_pointers(parts, stem)
    _refuse_gaps(ordered, parts)
    _refuse_odd_sizes(parts)
    return parts


def _ordinal(number: str) -> int:
    """`aa` is 0, `ab` 1, …; digits are themselves."""
    if number.isdigit():
        return int(number)
    value = 0
    for letter in number:
        value = value * 26 + ord(letter) - ord("a")
    return value


def _named(ordinal: int, like: str) -> str:
    """The name that `split` gives to a number, as long as `like`."""
    if like.isdigit():
        return str(ordinal).zfill(len(like))
    letters = ""
    for _ in like:
        ordinal, letter = divmod(ordinal, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


def _refuse_gaps(numbers: Sequence[str], parts: Sequence[Path]) -> None:
    lengths = {len(number) for number in numbers}
    if len(lengths) > 1 and not numbers[0].isdigit():
        raise UserError(f"the parts {parts[0].name} and {parts[-1].name} are of different archives")
    first = _ordinal(numbers[0])
    # Letters begin at a; digits at 0 or at 1.
    expected = first if numbers[0].isdigit() and first == 1 else 0
    for number, part in zip(numbers, parts, strict=True):
        if _ordinal(number) != expected:
            missing = part.name[: -len(number)] + _named(expected, number)
            raise UserError(f"the part {missing} is missing in {part.parent}")
        expected += 1


def _refuse_pointers(parts: Sequence[Path], stem: Path) -> None:
    for part in parts:
        with part.open("rb") as handle:
            if handle.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise UserError(
                    f"{part} is still a git-LFS pointer: run "
                    f"`git lfs pull --include '{stem.parent.as_posix()}/{stem.name}*'` in the "
                    "repository"
                )


def _refuse_odd_sizes(parts: Sequence[Path]) -> None:
    """`split` makes all parts but the last alike: another size is an unfinished download."""
    sizes = [part.stat().st_size for part in parts]
    for part, size in zip(parts, sizes, strict=True):
        if size == 0:
            raise UserError(f"the part {part} is empty: get it again")
        if size < max(sizes) and part != parts[-1]:
            raise UserError(
                f"the part {part} has {size} bytes, others have {max(sizes)}: get it again"
            )


class JoinedParts(io.RawIOBase):
    """Several files as one that can be read and sought in."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(part.stat().st_size for part in parts))
        self._at = 0
        self._open: tuple[int, io.BufferedReader] | None = None

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self.ends[-1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}
        self._at = max(starts[whence] + offset, 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        index = bisect_right(self.ends, self._at)
        if index == len(self.parts):
            return 0
        if self._open is None or self._open[0] != index:
            self._close_part()
            self._open = index, self.parts[index].open("rb")
        handle = self._open[1]
        handle.seek(self._at - (self.ends[index - 1] if index else 0))
        count = handle.readinto(buffer)
        self._at += count
        return count

    def close(self) -> None:
        self._close_part()
        super().close()

    def _close_part(self) -> None:
        if self._open:
            self._open[1].close()
            self._open = None
