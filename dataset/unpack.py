"""Unpack an archive that is shipped in parts, such as the review photos; none is written joined.

Run from the repository root: python dataset/unpack.py --help
"""

from __future__ import annotations

import argparse
import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, count, product
from pathlib import Path
from string import ascii_lowercase

from dataset.archives import Unpacked, unpack_stream
from visual_search.common.errors import UserError, run_command
from visual_search.common.files import is_lfs_pointer, open_regular

_PART = re.compile(r"^(?P<stem>.+)\.part(?P<number>[a-z]+|[0-9]+)$")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="unpack.py",
        description="Join the parts of a tar archive (<archive>.parta*, .tar.partaa, .part00 …) "
        "as a stream and unpack it safely. A run that was stopped goes on when it is called again.",
    )
    parser.add_argument(
        "archive",
        type=Path,
        help="what stands in front of .part…, such as dataset/images_mean_50k_800",
    )
    parser.add_argument(
        "--output", type=Path, help="folder that gets the contents (default: that of the parts)"
    )
    return parser.parse_args(arguments)


def unpack_parts(archive: Path, target: Path) -> Unpacked:
    """Unpack an archive that was split into parts; see :func:`find_parts`."""
    joined = JoinedParts(find_parts(archive))
    with io.BufferedReader(joined, 1 << 20) as stream:
        return unpack_stream(stream, archive.name, target, joined.size)


def find_parts(stem: Path) -> list[Path]:
    """The parts of an archive in their order.

    `stem` is what stands in front of `.part…`, with or without `.tar` and the like; one of the
    parts will do as well.

    Raises:
        UserError: when there is none, when one is missing in the sequence (it is named), is an LFS
            pointer, or differs in size from the others but the last.
    """
    if match := _PART.match(stem.name):
        stem = stem.with_name(match["stem"])
    if not stem.parent.is_dir():
        raise UserError(f"the folder {stem.parent} does not exist")
    archives: dict[str, list[Path]] = {}
    for path in sorted(stem.parent.iterdir(), key=lambda path: (len(path.suffix), path.suffix)):
        match = _PART.match(path.name)
        if match and (match["stem"] == stem.name or match["stem"].startswith(f"{stem.name}.t")):
            archives.setdefault(match["stem"], []).append(path)
    if not archives:
        raise UserError(f"{stem.parent} has no part {stem.name}.part… (or {stem.name}.tar.part…)")
    if len(archives) > 1:
        raise UserError(f"{' and '.join(sorted(archives))} are both there: name the one you mean")
    ((name, parts),) = archives.items()
    most = max(part.stat().st_size for part in parts)
    for part, number in zip(parts, _numbers(parts[0].suffix.removeprefix(".part")), strict=False):
        if part.suffix != f".part{number}":
            raise UserError(f"the part {name}.part{number} is missing in {stem.parent}")
        if is_lfs_pointer(part):
            raise UserError(
                f"{part} is still a git-LFS pointer: run "
                f"`git lfs pull --include '{stem.parent.as_posix()}/{stem.name}*'` in the "
                "repository"
            )
        # `split` makes all parts but the last alike: another size is an unfinished download.
        size = part.stat().st_size
        if size < most and part != parts[-1]:
            raise UserError(f"the part {part} has {size} bytes, others have {most}: get it again")
    return parts


def _numbers(first: str) -> Iterator[str]:
    """How parts are numbered: `split` writes aa, ab, … or 00, 01, …; other tools 1, 2, …"""
    if first.isdigit():
        return (str(number).zfill(len(first)) for number in count(int(int(first) == 1)))
    return map("".join, product(ascii_lowercase, repeat=len(first)))


class JoinedParts(io.RawIOBase):
    """Several files as one that can be read and sought in."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(part.stat().st_size for part in parts))
        self.size = self.ends[-1]
        """Bytes of all of them."""
        self._at, self._index = 0, -1
        self._handle: io.BufferedIOBase = io.BytesIO()

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
        if self._index != index:
            self._handle.close()
            self._index, self._handle = index, open_regular(self.parts[index])
        self._handle.seek(self._at - (self.ends[index - 1] if index else 0))
        found = self._handle.readinto(buffer)
        self._at += found
        return found

    def close(self) -> None:
        self._handle.close()
        super().close()


def main() -> None:
    """Unpack, and say what there is."""
    arguments = parse_arguments()
    output = arguments.output or arguments.archive.parent
    done = unpack_parts(arguments.archive, output)
    print(
        f"{output}: {done.written} files unpacked, {done.kept} were there already; the parts "
        "are no longer needed. Name the images' folder as `root` of the table that lists them "
        "(dataset.tables, see dataset/README.md)."
    )


if __name__ == "__main__":
    run_command(main)
