"""One object a line, plain or gzipped, however damaged: what can be read, and a count.

A file of tens of gigabytes is read once, front to back, in pieces of a few megabytes. A broken
line costs itself, a gzip file that was cut short its lost end; what has no line ends is not held.
Below that: which images a review or a product of Amazon's has.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dataset.downloads import sized_image
from visual_search.common.errors import UserError
from visual_search.common.files import another_kind, open_regular
from visual_search.data.values import id_of

GZIP_MAGIC = b"\x1f\x8b"
PIECE_BYTES = 1 << 18
LONGEST_LINE = 32 << 20
"""Bytes; a longer one counts as broken. Reviews and products have a few thousand."""
PACKED = 2
"""Times that a file may be gzipped: some mirrors pack what is packed already."""

LINES, BROKEN, CUT = "lines", "broken lines", "gzip cut short or damaged"

# Deep brackets end a parser by RecursionError, and by MemoryError in Python's own.
UNREADABLE = (msgspec.MsgspecError, ValueError, SyntaxError, RecursionError, MemoryError)

Found = TypeVar("Found", bound=msgspec.Struct)


def read_objects(path: Path, tally: Counter[str], fields: type[Found]) -> Iterator[list[Found]]:
    """The objects of a file, plain or gzipped, some thousand at a time.

    Lines are JSON, or, as in Amazon's dumps before 2018, dicts as Python prints them. What `fields`
    does not name is checked for its form and skipped; `tally` counts lines, broken ones and a
    damaged end.

    Raises:
        UserError: when the file cannot be opened, or is of another kind as a whole.
    """
    decode = msgspec.json.Decoder(fields).decode
    for block in _lines(_pieces(path, tally), tally):
        tally[LINES] += len(block)
        try:
            yield [decode(line) for line in block]
        except UNREADABLE:
            yield list(_readable(block, tally, fields))


def _readable(block: list[bytes], tally: Counter[str], fields: type[Found]) -> Iterator[Found]:
    """Line by line, as one of them is broken."""
    for line in block:
        try:
            if line.lstrip().startswith(b"{'"):
                yield msgspec.convert(ast.literal_eval(line.decode().strip()), fields)
            else:
                yield msgspec.json.decode(line, type=fields)
        except UNREADABLE:
            if line.strip():
                tally[BROKEN] += 1
            else:
                tally[LINES] -= 1


def _lines(pieces: Iterator[bytes], tally: Counter[str]) -> Iterator[list[bytes]]:
    """Complete lines, some at a time, without their line ends; those too long are counted."""
    begun, size = b"", 0  # of a line whose end was not met yet
    for piece in itertools.chain(pieces, [b"\n"]):
        first, *lines = piece.split(b"\n")
        size += len(first)
        begun = begun + first if size <= LONGEST_LINE else b""
        if not lines:
            continue
        if size <= LONGEST_LINE:
            lines.insert(0, begun)
        else:
            tally[LINES] += 1
            tally[BROKEN] += 1
        begun = lines.pop()
        size = len(begun)
        if lines:
            yield lines


def _pieces(path: Path, tally: Counter[str]) -> Iterator[bytes]:
    """The unpacked content of a file, some at a time; a UserError for what has no objects."""
    pieces = _read(path)
    first = next(pieces, b"")
    for _ in range(PACKED):
        if first.startswith(GZIP_MAGIC):
            pieces = _unpacked(itertools.chain([first], pieces), tally)
            first = next(pieces, b"")
    problem = kind_problem(first)
    if problem:
        raise UserError(f"{path} {problem}")
    pieces = itertools.chain([first.removeprefix(b"\xef\xbb\xbf")], pieces)
    if b"\n" not in first and re.search(rb"}\s*\r\s*{", first):  # ends of lines as on old Macs
        pieces = (piece.replace(b"\r", b"\n") for piece in pieces)
    yield from pieces


def kind_problem(start: bytes) -> str | None:
    """What a file that begins so, unpacked, is that has no object a line; None: not clear."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(GZIP_MAGIC):
        return f"is packed by gzip more than {PACKED} times over: unpack it"
    if re.match(rb"\[\s*[{\]]", text):
        return "is one JSON array: write an object a line, by `jq -c '.[]'`"
    return another_kind(start) or None


def beginning(path: Path) -> str:
    """How the unpacked content of a file begins, to be shown."""
    return repr(next(_pieces(path, Counter()), b"")[:60])


def _read(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as handle:
            while piece := handle.read(PIECE_BYTES):
                yield piece
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _unpacked(packed: Iterator[bytes], tally: Counter[str]) -> Iterator[bytes]:
    """The content of a gzip file of any number of members, up to where it is damaged."""
    from isal import isal_zlib

    limit = 8 * PIECE_BYTES  # of output at a time: zeros would else unpack to gigabytes at once
    stream = isal_zlib.decompressobj(wbits=31)
    try:
        for piece in packed:
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


class Fields(msgspec.Struct, gc=False):
    """The fields of a review or a product that are looked at."""

    asin: Any = None
    title: Any = None
    image: Any = None
    imageURL: Any = None
    imageURLHighRes: Any = None
    imUrl: Any = None


Row = tuple[str, str, list[str]]
"""asin, title and addresses of images."""


def review(fields: Fields, tally: Counter[str]) -> Row | None:
    """The images of a review, None where there is none to use; `tally` counts why."""
    if not fields.image:
        return None  # most reviews; the lines are counted already
    return _row(fields, addresses(fields.image, tally), tally)


def product(fields: Fields, tally: Counter[str]) -> Row | None:
    """The shop's images of a product, the large ones where it has them."""
    # A page that was saved as its title: its script begins with `aPageStart.getTime()`.
    if isinstance(fields.title, str) and "getTime" in fields.title:
        tally["junk rows (getTime in the title)"] += 1
        return None
    for field in (fields.imageURLHighRes, fields.imageURL, [fields.imUrl] if fields.imUrl else []):
        found = addresses(field, tally)
        if found:
            break
    return _row(fields, found, tally)


def _row(fields: Fields, images: list[str], tally: Counter[str]) -> Row | None:
    try:
        asin = id_of(fields.asin)
    except ValueError:
        tally["rows without asin"] += 1
        return None
    if not images:
        tally["rows without photos"] += 1
        return None
    title = fields.title if isinstance(fields.title, str) else ""
    return asin, title, images


def addresses(value: Any, tally: Counter[str]) -> list[str]:
    """The http(s) addresses of an image field: a list, one string, or nothing."""
    if not value:
        return []
    if isinstance(value, str):
        tally["image fields that are a string"] += 1
        value = [value]
    if not isinstance(value, list):
        tally["image fields of a wrong type"] += 1
        return []
    found = [
        entry
        for entry in value
        if isinstance(entry, str) and entry.startswith(("http://", "https://"))
    ]
    if len(found) < len(value):
        tally["image entries that are no http(s) address"] += len(value) - len(found)
    return found


def unique_images(urls: list[str]) -> list[str]:
    """The addresses of different images, sorted; of one image in several sizes the first."""
    by_image: dict[str, str] = {}
    for url in sorted(urls):
        by_image.setdefault(sized_image(url, 0), url)
    return list(by_image.values())
