"""The organiser's files, a block of lines at a time.

`images.json` has one `{"image": 1, "url": "http://…"}` a line, `metadata.json` one
`{"image": 1, "queries": ["…", "…"]}`. An image's id may be a number or a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import pyarrow as pa

from dataset.dataset_creation_steps.reviews import LINES, beginning, read_objects
from visual_search.common.errors import UserError
from visual_search.data.values import id_of


class ImageLine(msgspec.Struct, gc=False):
    """A line of `images.json`."""

    example: ClassVar[str] = '{"image": 1, "url": "http://…"}'
    image: Any = None
    url: Any = None

    def missing(self) -> str:
        """What it lacks beside an id; the address is stripped."""
        self.url = self.url.strip() if isinstance(self.url, str) else ""
        return "" if self.url else "an address"


class QueryLine(msgspec.Struct, gc=False, omit_defaults=True):
    """A line of `metadata.json`; `file` is added once the image is there."""

    example: ClassVar[str] = '{"image": 1, "queries": ["…"]}'
    image: Any = None
    queries: Any = None
    file: str | None = None

    def missing(self) -> str:
        """What it lacks beside an id; queries that are no text are left out."""
        queries = self.queries if isinstance(self.queries, list) else []
        self.queries = [query for query in queries if isinstance(query, str) and query.strip()]
        return "" if self.queries else "a query"


Line = TypeVar("Line", ImageLine, QueryLine)


def read_images(path: Path, tally: Counter[str]) -> pa.Table:
    """`image` and `url` of `images.json`, text; see :func:`read_lines`."""
    schema = pa.schema([("image", pa.string()), ("url", pa.string())])
    batches = []
    for rows in read_lines(path, tally, ImageLine):
        columns = [[image for image, _ in rows], [line.url for _, line in rows]]
        batches.append(pa.record_batch(columns, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def read_lines(
    path: Path, tally: Counter[str], kind: type[Line]
) -> Iterator[list[tuple[str, Line]]]:
    """Ids and lines of a file, in blocks; `tally` counts lines and what was left out.

    Raises:
        UserError: when the file cannot be read or has nothing of the kind.
    """
    found = False
    for block in read_objects(path, tally, kind):
        rows = []
        for line in block:
            try:
                image = id_of(line.image)
            except ValueError:
                tally["lines without an image"] += 1
                continue
            if lacks := line.missing():
                tally[f"lines without {lacks}"] += 1
            else:
                rows.append((image, line))
        found = found or bool(rows)
        yield rows
    if not found:
        raise UserError(
            f"{path} has no line such as {kind.example} ({tally[LINES]} lines were read; it begins "
            f"{beginning(path)})"
        )
