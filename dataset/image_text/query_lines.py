"""The organiser's files, a block of lines at a time, and keys of 8 bytes to find rows again.

`images.json` has one `{"image": 1, "url": "http://…"}` a line, `metadata.json` one
`{"image": 1, "queries": ["…", "…"]}`. An image's id may be a number or a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from dataset.dataset_creation_steps.json_lines import LINES, read_objects
from visual_search.errors import UserError

NO_IMAGE = "lines without an image"
NO_URL = "lines without an address"
NO_QUERY = "lines without a query"


class ImageLine(msgspec.Struct, gc=False):
    """A line of `images.json`."""

    image: Any = None
    url: Any = None


class QueryLine(msgspec.Struct, gc=False, omit_defaults=True):
    """A line of `metadata.json`; `file` is added once the photo is there."""

    image: Any = None
    queries: Any = None
    file: str | None = None


def image_id(value: object) -> str | None:
    """An image's id as text; None for what is no id."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value) or None


def read_images(path: Path, tally: Counter[str]) -> Iterator[list[tuple[str, str]]]:
    """Ids and addresses of `images.json`, in blocks; `tally` counts lines and what was left out.

    Raises:
        UserError: when the file cannot be read or has nothing of the kind.
    """
    found = False
    for block in read_objects(path, tally, ImageLine):
        rows = []
        for line in block:
            image, url = image_id(line.image), line.url
            if image is None:
                tally[NO_IMAGE] += 1
            elif not isinstance(url, str) or not url.strip():
                tally[NO_URL] += 1
            else:
                rows.append((image, url.strip()))
        found = found or bool(rows)
        yield rows
    if not found:
        raise UserError(
            f'{path} has no line such as {{"image": 1, "url": "http://…"}} '
            f"({tally[LINES]} lines were read)"
        )


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
                tally[NO_QUERY] += 1
            else:
                rows.append((image, line))
        found = found or bool(rows)
        yield rows
    if not found:
        raise UserError(
            f'{path} has no line such as {{"image": 1, "queries": ["…"]}} '
            f"({tally[LINES]} lines were read)"
        )


def keys(texts: Sequence[str]) -> np.ndarray:
    """A number of 64 bits for each text, `(n,)`, uint64, alike in every run.

    Of five million texts, two different ones share a number with a chance of one in a million.
    """
    return pd.util.hash_array(np.array(texts, dtype=object), categorize=False)


def places(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where each of `wanted` stands in `known`, which is sorted; -1 where it does not."""
    if not len(known):
        return np.full(len(wanted), -1)
    found = np.searchsorted(known, wanted)
    found[found == len(known)] = 0
    return np.where(known[found] == wanted, found, -1)


class KeySet:
    """Keys of :func:`keys`, 8 bytes each, to which more are added a block at a time."""

    RECENT = 200_000

    def __init__(self) -> None:
        self._sorted = np.zeros(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def add(self, found: np.ndarray) -> np.ndarray:
        """Add keys.

        Returns:
            Which of them were not there yet, `(n,)`, bool; of equal ones only the first.
        """
        new = places(found, self._sorted) < 0
        for row in np.flatnonzero(new).tolist():
            key = int(found[row])
            if key in self._recent:
                new[row] = False
            else:
                self._recent.add(key)
        if len(self._recent) > self.RECENT:
            self.sorted()
        return new

    def sorted(self) -> np.ndarray:
        """All keys, ascending, uint64."""
        recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
        self._sorted = np.sort(np.concatenate([self._sorted, recent]))
        self._recent.clear()
        return self._sorted
