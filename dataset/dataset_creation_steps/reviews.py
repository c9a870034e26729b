"""One JSON object a line, plain or gzipped, however damaged: what can be read, and a count.

A file of tens of gigabytes is read once, front to back, in pieces of a few megabytes. A broken
line costs itself, a gzip file that was cut short its lost end; what has no line ends is not held.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
from daft.io.pushdowns import Pushdowns
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch
from daft.schema import Schema

from visual_search.common.errors import UserError

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


# What stands between the id and the extension asks for a size or a cut-out: `._SY88`,
# `._SX38_SY50_CR,0,0,38,50_`.
_AMAZON = re.compile(
    r"^(?P<head>https?://[^?#]*/images/[A-Z]/[^/?#.]+)(?:\._[^/?#]*)?(?P<end>\.\w+)$"
)


def stored_image(url: str) -> str:
    """The address of the photo as it was uploaded, whatever size `url` asks for.

    Two addresses of the same photo in different sizes give the same text; an address of another
    form is returned as it is.
    """
    found = _AMAZON.match(url)
    return found["head"] + found["end"] if found else url


def sized_image(url: str, side: int) -> str:
    """The address of the same photo, scaled by the server.

    Args:
        url: an address; one that is not of Amazon's form is returned as it is.
        side: of the longest side, pixels; 0 asks for the photo as it was uploaded.
    """
    found = _AMAZON.match(url)
    if not found:
        return url
    return f"{found['head']}._SL{side}_{found['end']}" if side else stored_image(url)


# A product's page that was saved as its title: its script begins with `aPageStart.getTime()`.
JUNK = "getTime"

JUNK_ROWS = "junk rows (getTime in the title)"
NO_ASIN = "rows without asin"
NO_PHOTO = "rows without photos"
STRING_FIELDS = "image fields that are a string"
WRONG_FIELDS = "image fields of a wrong type"
WRONG_URLS = "image entries that are no http(s) address"


class Fields(msgspec.Struct, gc=False):
    """The fields that a step looks at; all others are checked for their form and skipped."""

    asin: Any = None
    title: Any = None
    image: Any = None
    imageURL: Any = None
    imageURLHighRes: Any = None


Row = tuple[str, str, list[str]]
"""asin, title and addresses of photos."""

Reader = Callable[[Fields, Counter[str]], Row | None]


def review(fields: Fields, tally: Counter[str]) -> Row | None:
    """The photos of a review, None where there is none to use; `tally` counts why."""
    if not fields.image:
        return None  # most reviews; the lines are counted already
    return _row(fields, addresses(fields.image, tally), tally)


def product(fields: Fields, tally: Counter[str]) -> Row | None:
    """The shop's photos of a product, the large ones where it has them."""
    if isinstance(fields.title, str) and JUNK in fields.title:
        tally[JUNK_ROWS] += 1
        return None
    large = addresses(fields.imageURLHighRes, tally)
    return _row(fields, large or addresses(fields.imageURL, tally), tally)


READERS: dict[str, Reader] = {"reviews": review, "products": product}


def _row(fields: Fields, photos: list[str], tally: Counter[str]) -> Row | None:
    if not isinstance(fields.asin, str) or not fields.asin.strip():
        tally[NO_ASIN] += 1
        return None
    if not photos:
        tally[NO_PHOTO] += 1
        return None
    title = fields.title if isinstance(fields.title, str) else ""
    return fields.asin.strip(), title, photos


def addresses(value: Any, tally: Counter[str]) -> list[str]:
    """The http(s) addresses of an image field: a list, one string, or nothing."""
    if not value:
        return []
    if isinstance(value, str):
        tally[STRING_FIELDS] += 1
        value = [value]
    if not isinstance(value, list):
        tally[WRONG_FIELDS] += 1
        return []
    found = [entry for entry in value if _is_address(entry)]
    if len(found) < len(value):
        tally[WRONG_URLS] += len(value) - len(found)
    return found


def _is_address(entry: Any) -> bool:
    return isinstance(entry, str) and entry.startswith(("http://", "https://"))


def unique_photos(urls: list[str]) -> list[str]:
    """The addresses of different photos, sorted; of one photo in several sizes the first."""
    by_photo: dict[str, str] = {}
    for url in sorted(urls):
        by_photo.setdefault(stored_image(url), url)
    return list(by_photo.values())


ROWS = pa.schema(
    [
        ("asin", pa.string()),
        ("title", pa.string()),
        ("urls", pa.list_(pa.string())),
        # Only in the last row of a task: its counts, as JSON.
        ("tally", pa.string()),
    ]
)

# Bytes of a plain file that one task reads; a gzipped file is one task.
TASK_BYTES = 256 << 20
BATCH_ROWS = 4096


class AmazonFile(DataSource):
    """The rows of a file of reviews or of products that have photos."""

    def __init__(self, path: Path, kind: str, task_bytes: int = TASK_BYTES) -> None:
        self.path, self.kind, self.task_bytes = path, kind, task_bytes

    @property
    def name(self) -> str:
        return f"{self.kind} of {self.path.name}"

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(ROWS)

    async def get_tasks(self, pushdowns: Pushdowns) -> AsyncIterator[DataSourceTask]:
        """One task for each part of the file."""
        if is_gzip(self.path):
            yield _Part(self.path, self.kind, 0, -1)
            return
        size = os.path.getsize(self.path)
        for start in range(0, max(size, 1), self.task_bytes):
            yield _Part(self.path, self.kind, start, start + self.task_bytes)


class _Part(DataSourceTask):
    def __init__(self, path: Path, kind: str, start: int, end: int) -> None:
        self.path, self.kind, self.start, self.end = path, kind, start, end

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(ROWS)

    async def read(self) -> AsyncIterator[RecordBatch]:
        """Batches of rows, the counts last."""
        tally: Counter[str] = Counter()
        reader = READERS[self.kind]
        rows: list[Row] = []
        for block in read_objects(self.path, tally, Fields, self.start, self.end):
            rows += [row for fields in block if (row := reader(fields, tally)) is not None]
            if len(rows) >= BATCH_ROWS:
                yield _batch(rows)
                rows = []
        yield _batch(rows, tally)


def _batch(rows: list[Row], tally: Counter[str] | None = None) -> RecordBatch:
    table: list[tuple[str | None, str | None, list[str] | None, str | None]]
    table = [(*row, None) for row in rows]
    if tally is not None:
        table.append((None, None, None, json.dumps(tally)))
    columns = {name: [row[at] for row in table] for at, name in enumerate(ROWS.names)}
    return RecordBatch.from_arrow_record_batches([pa.record_batch(columns, schema=ROWS)], ROWS)
