"""The organiser's files, a block of lines at a time, and keys of 8 bytes to find rows again.

`images.json` has one `{"image": 1, "url": "http://…"}` a line, `metadata.json` one
`{"image": 1, "queries": ["…", "…"]}`. An image's id may be a number or a text.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.dataset_creation_steps.photos import CONTENT_DIGITS, EXTENSIONS, NAME_DIGITS, plan_file
from dataset.dataset_creation_steps.reviews import LINES, read_objects
from visual_search.common.errors import UserError
from visual_search.common.files import written_atomically

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


_EXTENSIONS = sorted(set(EXTENSIONS.values()))
_NAME_BYTES = NAME_DIGITS // 2


class PhotoIndex:
    """Image ids to files of a store by content (`ab/ab12….jpg`)."""

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._keys = np.zeros(0, dtype=np.uint64)
        self._names = np.zeros((0, _NAME_BYTES), dtype=np.uint8)
        self._kinds = np.zeros(0, dtype=np.uint8)

    def add(self, images: Sequence[str], files: Sequence[str]) -> None:
        """Put some behind the others; :meth:`finish` comes after the last."""
        stems, extensions = zip(
            *(file[CONTENT_DIGITS + 1 :].split(".") for file in files), strict=True
        )
        names = np.frombuffer(bytes.fromhex("".join(stems)), dtype=np.uint8)
        kinds = np.array([_EXTENSIONS.index(extension) for extension in extensions], np.uint8)
        self._blocks.append((keys(images), names.reshape(-1, _NAME_BYTES), kinds))

    def finish(self) -> int:
        """Get ready to be asked; of several photos of an image the first counts.

        Returns:
            How many photos are left out for that.
        """
        if not self._blocks:
            return 0
        found, names, kinds = (np.concatenate(part) for part in zip(*self._blocks, strict=True))
        self._blocks.clear()
        self._keys, first = np.unique(found, return_index=True)
        self._names, self._kinds = names[first], kinds[first]
        return len(found) - len(first)

    def __len__(self) -> int:
        return len(self._keys)

    def contents(self) -> int:
        """Different contents among the photos."""
        return len(np.unique(self._names.view(f"V{_NAME_BYTES}")))

    def files(self, images: Sequence[str]) -> list[str | None]:
        """Of each image its file, None where there is none."""
        return [
            None if place < 0 else self._file(place)
            for place in places(keys(images), self._keys).tolist()
        ]

    def _file(self, place: int) -> str:
        stem = self._names[place].tobytes().hex()
        return f"{stem[:CONTENT_DIGITS]}/{stem}.{_EXTENSIONS[self._kinds[place]]}"


PLAN = pa.schema([("image", pa.string()), ("url", pa.string())])


def photo_keys(images: list[str], urls: list[str]) -> np.ndarray:
    """A number for each photo: of its id and its address together."""
    return keys([f"{image}\t{url}" for image, url in zip(images, urls, strict=True)])


def extend_plan(
    root: Path, blocks: Iterator[list[tuple[str, str]]], piece_photos: int
) -> tuple[int, np.ndarray]:
    """Put what is not planned yet behind what is, in pieces of so many photos.

    Args:
        root: of the store; its plan has a row group for each piece.
        blocks: ids and addresses that are wanted.
        piece_photos: of a new piece.

    Returns:
        Pieces of the plan; the keys of all that is wanted, sorted.
    """
    path = plan_file(root)
    old = pq.ParquetFile(path) if path.is_file() else None
    planned, wanted = KeySet(), KeySet()
    for batch in old.iter_batches() if old else ():
        planned.add(photo_keys(batch["image"].to_pylist(), batch["url"].to_pylist()))
    pieces = old.num_row_groups if old else 0
    new = _new_pieces(blocks, planned, wanted, piece_photos)
    first = next(new, None)
    if first is not None:
        with written_atomically(path) as temporary, pq.ParquetWriter(temporary, PLAN) as writer:
            for number in range(pieces):
                assert old is not None
                writer.write_table(old.read_row_group(number))
            for piece in itertools.chain([first], new):
                writer.write_table(piece)
                pieces += 1
    return pieces, wanted.sorted()


def _new_pieces(
    blocks: Iterator[list[tuple[str, str]]], planned: KeySet, wanted: KeySet, piece_photos: int
) -> Iterator[pa.Table]:
    """Pieces of what is not planned yet; the keys of all there is are put into `wanted`."""
    waiting: list[tuple[str, str]] = []
    for rows in blocks:
        if not rows:
            continue
        images, urls = (list(column) for column in zip(*rows, strict=True))
        found = photo_keys(images, urls)
        wanted.add(found)
        waiting += [rows[row] for row in np.flatnonzero(planned.add(found)).tolist()]
        while len(waiting) >= piece_photos:
            yield _table(waiting[:piece_photos])
            del waiting[:piece_photos]
    if waiting:
        yield _table(waiting)


def _table(rows: list[tuple[str, str]]) -> pa.Table:
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    return pa.Table.from_arrays(columns, schema=PLAN)
