"""The organiser's files, a block of lines at a time.

`images.json` has one `{"image": 1, "url": "http://…"}` a line, `metadata.json` one
`{"image": 1, "queries": ["…", "…"]}`. An image's id may be a number or a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from dataset.dataset_creation_steps.reviews import LINES, beginning, read_objects
from visual_search.common.errors import UserError
from visual_search.data.values import id_of

NO_IMAGE = "lines without an image"


class ImageLine(msgspec.Struct, gc=False):
    """A line of `images.json`."""

    image: Any = None
    url: Any = None


class QueryLine(msgspec.Struct, gc=False, omit_defaults=True):
    """A line of `metadata.json`; `file` is added once the image is there."""

    image: Any = None
    queries: Any = None
    file: str | None = None


def image_id(value: object) -> str | None:
    """An image's id by value; None for what is no id."""
    try:
        return id_of(value)
    except ValueError:
        return None


def read_images(path: Path, tally: Counter[str]) -> pa.Table:
    """`image` and `url` of `images.json`, text; `tally` counts lines and what was left out.

    Raises:
        UserError: when the file cannot be read or has nothing of the kind.
    """
    schema = pa.schema([("image", pa.string()), ("url", pa.string())])
    batches = []
    for block in read_objects(path, tally, ImageLine):
        images: list[str] = []
        urls: list[str] = []
        for line in block:
            image, url = image_id(line.image), line.url
            if image is None:
                tally[NO_IMAGE] += 1
            elif not isinstance(url, str) or not url.strip():
                tally["lines without an address"] += 1
            else:
                images.append(image)
                urls.append(url.strip())
        batches.append(pa.record_batch([images, urls], schema=schema))
    table = pa.Table.from_batches(batches, schema=schema)
    if not table.num_rows:
        raise _none_such(path, tally, '{"image": 1, "url": "http://…"}')
    return table


def read_queries(path: Path, tally: Counter[str]) -> Iterator[list[tuple[str, QueryLine]]]:
    """Ids and lines of `metadata.json`, in blocks; queries that are no text are left out.

    Raises:
        UserError: when the file cannot be read or has nothing of the kind.
    """
    found = False
    for block in read_objects(path, tally, QueryLine):
        rows = []
        for line in block:
            image = image_id(line.image)
            queries = line.queries if isinstance(line.queries, list) else []
            line.queries = [query for query in queries if isinstance(query, str) and query.strip()]
            if image is None:
                tally[NO_IMAGE] += 1
            elif not line.queries:
                tally["lines without a query"] += 1
            else:
                rows.append((image, line))
        found = found or bool(rows)
        yield rows
    if not found:
        raise _none_such(path, tally, '{"image": 1, "queries": ["…"]}')


def _none_such(path: Path, tally: Counter[str], line: str) -> UserError:
    return UserError(
        f"{path} has no line such as {line} ({tally[LINES]} lines were read; it begins "
        f"{beginning(path)})"
    )
