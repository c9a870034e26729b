"""One object a line, plain or gzipped, however damaged: what can be read, and a count.

A file of tens of gigabytes is read once, front to back, in blocks of lines. A broken
line costs itself, a gzip file that was cut short its lost end; what has no line ends is not held.
Below that: which images a review or a product of Amazon's has.
"""

from __future__ import annotations

import ast
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dataset.downloads import sized_image
from visual_search.common.errors import UserError
from visual_search.common.files import another_kind, open_regular
from visual_search.data.values import id_of

GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLOCK_BYTES = 1 << 18
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
    for block in _blocks(path, tally):
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


def _blocks(path: Path, tally: Counter[str]) -> Iterator[list[bytes]]:
    """The lines of a file, some at a time; in place of one that is too long, one that is broken."""
    block: list[bytes] = []
    size = 0
    try:
        with open_regular(path) as handle:
            content = _unpacked(handle)
            start = content.peek(1)
            if problem := kind_problem(start):
                raise UserError(f"{path} {problem}")
            if start.startswith(BYTE_ORDER_MARK):
                content.read(len(BYTE_ORDER_MARK))
            while line := content.readline(LONGEST_LINE):
                size += len(line)
                if len(line) < LONGEST_LINE or line.endswith(b"\n"):
                    block.append(line)
                else:
                    block.append(b"too long")
                    while len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                        line = content.readline(LONGEST_LINE)
                if size > BLOCK_BYTES:
                    yield block
                    block, size = [], 0
    except (EOFError, gzip.BadGzipFile, zlib.error):
        tally[CUT] += 1
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    yield block


def _unpacked(handle: BufferedReader) -> BufferedReader | gzip.GzipFile:
    """The content of a file that may be gzipped, by any number of members."""
    content: Any = handle
    for _ in range(PACKED):
        if content.peek(2).startswith(GZIP_MAGIC):
            content = gzip.GzipFile(fileobj=content, mode="rb")
    return content


def kind_problem(start: bytes) -> str | None:
    """What a file that begins so, unpacked, is that has no object a line; None: not clear."""
    text = start.removeprefix(BYTE_ORDER_MARK).lstrip()
    if start.startswith(GZIP_MAGIC):
        return f"is packed by gzip more than {PACKED} times over: unpack it"
    if re.match(rb"\[\s*[{\]]", text):
        return "is one JSON array: write an object a line, by `jq -c '.[]'`"
    return another_kind(start) or None


def beginning(path: Path) -> str:
    """How the unpacked content of a file begins, to be shown."""
    with open_regular(path) as handle:
        return repr(_unpacked(handle).peek(60)[:60])


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
