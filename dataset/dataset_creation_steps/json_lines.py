"""One JSON object a line, plain or gzipped, however damaged: what can be read, and a count.

A file of tens of gigabytes is read once, front to back, in pieces of a few megabytes. A broken
line costs itself, a gzip file that was cut short its lost end; what has no line ends is not held.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from visual_search.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
PIECE_BYTES = 1 << 18
LONGEST_LINE = 32 << 20
"""Bytes; a longer one counts as broken. Reviews and products have a few thousand."""

# What a file was found to be, in the order in which a summary tells it.
LINES, BROKEN, CUT = "lines", "broken lines", "gzip cut short or damaged"

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


Found = TypeVar("Found", bound=msgspec.Struct)


def read_objects(
    path: Path, tally: Counter[str], fields: type[Found], start: int = 0, end: int = -1
) -> Iterator[list[Found]]:
    """The objects of a file, some thousand at a time, or of those lines that begin within a range.

    Args:
        path: plain or gzipped; which one is seen from its first bytes.
        tally: counts lines, broken lines and a damaged end.
        fields: what is looked at; all other fields are checked for their form and skipped.
        start: of the range, bytes; a gzipped file can only be read whole.
        end: of the range; -1 is the end of the file.

    Raises:
        UserError: when the file cannot be opened.
    """
    decode = msgspec.json.Decoder(fields).decode
    for block in _lines(path, tally, start, end):
        tally[LINES] += len(block)
        try:
            yield [decode(line) for line in block]
        except UNREADABLE:
            yield list(_readable(block, tally, fields))


def _readable(block: list[bytes], tally: Counter[str], fields: type[Found]) -> Iterator[Found]:
    """Line by line, as one of them is broken."""
    for line in block:
        try:
            yield msgspec.json.decode(line, type=fields)
        except UNREADABLE:
            if line.strip():
                tally[BROKEN] += 1
            else:
                tally[LINES] -= 1


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does.

    Raises:
        UserError: when it cannot be opened.
    """
    try:
        with path.open("rb") as handle:
            return handle.read(2) == GZIP_MAGIC
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _lines(path: Path, tally: Counter[str], start: int, end: int) -> Iterator[list[bytes]]:
    """Complete lines, some at a time, without their line ends; those too long are counted."""
    pieces = _unpacked(path, tally) if is_gzip(path) else _range(path, start, end)
    rest = _Unended()
    for piece in pieces:
        first, *lines = piece.split(b"\n")
        rest.add(first)
        if lines:
            lines = [*rest.ended(tally), *lines]
            rest.add(lines.pop())
            if lines:
                yield lines
    if rest.size:
        yield rest.ended(tally)


class _Unended:
    """A line whose end was not met yet; joined once, and let go of when it is too long."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        """Go on with some more bytes."""
        self.size += len(part)
        if self.size <= LONGEST_LINE:
            self._parts.append(part)
        else:
            self._parts.clear()

    def ended(self, tally: Counter[str]) -> list[bytes]:
        """The line, and begin anew; none where it was too long, which is counted."""
        too_long = self.size > LONGEST_LINE
        line, self.size, self._parts = b"".join(self._parts), 0, []
        if not too_long:
            return [line]
        tally[LINES] += 1
        tally[BROKEN] += 1
        return []


def _range(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The lines that begin at `start` <= position < `end`, in pieces."""
    size = os.path.getsize(path)
    end = size if end < 0 else min(end, size)
    with path.open("rb") as handle:
        if start > 0:
            handle.seek(start - 1)
            # The line that began before the range belongs to the one before.
            while handle.tell() < end and (skipped := handle.readline(PIECE_BYTES)):
                if skipped.endswith(b"\n"):
                    break
        piece = b"\n"
        while (position := handle.tell()) < end:
            piece = handle.read(min(PIECE_BYTES, end - position))
            if not piece:
                return
            yield piece
        beyond = 0  # the last line may reach there
        while not piece.endswith(b"\n") and beyond <= LONGEST_LINE:
            piece = handle.readline(PIECE_BYTES)
            if not piece:
                return
            beyond += len(piece)
            yield piece


def _unpacked(path: Path, tally: Counter[str]) -> Iterator[bytes]:
    """The content of a gzip file of any number of members, up to where it is damaged."""
    from isal import isal_zlib

    limit = 8 * PIECE_BYTES  # of output at a time: zeros would else unpack to gigabytes at once
    stream = isal_zlib.decompressobj(wbits=31)
    with path.open("rb") as handle:
        try:
            while piece := handle.read(PIECE_BYTES):
                while piece:
                    if stream.eof:  # another member, or the zeros that fill up a tape
                        if not piece.strip(b"\0"):
                            break
                        stream = isal_zlib.decompressobj(wbits=31)
                    yield stream.decompress(piece, limit)
                    piece = stream.unused_data if stream.eof else stream.unconsumed_tail
            while not stream.eof and (found := stream.decompress(b"", limit)):
                yield found
        except isal_zlib.error:  # type: ignore[misc]  # its stub declares an instance
            tally[CUT] += 1
            return
    if not stream.eof:
        tally[CUT] += 1
