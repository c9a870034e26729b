"""Which photos are wanted, in an order that never changes, written as they are read.

Of each photo only a key of 8 bytes is in memory, so a list may have many millions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.dataset_creation_steps.stored_pieces import plan_file
from dataset.image_text.query_lines import KeySet, keys
from visual_search.files import written_atomically

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
