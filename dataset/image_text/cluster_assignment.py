"""The cluster of each query and of each photo, added to a table of pairs, piece by piece."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.dataset_creation_steps.snapshots import (
    check_source,
    file_fingerprint,
    fingerprint,
    read_rows,
    read_snapshot,
    write_snapshot,
)
from visual_search.errors import UserError
from visual_search.files import written_atomically
from visual_search.pair_table import CLUSTER_FIELDS, SCHEMA, open_pairs
from visual_search.progress import progress_bar
from visual_search.text_clusters import FACTS, MODEL, TextClusters

PIECE_PHOTOS = 10_000
CLUSTERED = pa.schema([*SCHEMA, *CLUSTER_FIELDS])


def assign(
    pairs: Path, clusters: Path, output: Path, piece_photos: int = PIECE_PHOTOS
) -> list[int]:
    """Write the table with the columns `clusters` and `cluster`.

    Pieces that are done lie beside the output until all are.

    Args:
        pairs: the table, with or without clusters.
        clusters: folder of the clusters.
        output: the table to write; it may be the same.
        piece_photos: photos between two records of what is done.

    Returns:
        Photos of each cluster.

    Raises:
        UserError: when one of them is missing or none of the kind.
    """
    rows = open_pairs(pairs).metadata.num_rows
    known = TextClusters.load(clusters)
    source = fingerprint(
        file_fingerprint(pairs), *(file_fingerprint(clusters / name) for name in (MODEL, FACTS))
    )
    work = output.with_name(f".{output.name}.clusters")
    work.mkdir(parents=True, exist_ok=True)
    starts = range(0, rows, piece_photos)
    sizes = np.zeros(known.count, dtype=np.int64)
    with progress_bar("clustering", "photo", total=rows) as bar:
        for start in starts:
            path = work / f"{start}.piece"
            if not _is_done(path, source):
                write_snapshot(path, _piece(pairs, start, piece_photos, known), source)
            bar.update(min(piece_photos, rows - start))
    with written_atomically(output) as temporary, pq.ParquetWriter(temporary, CLUSTERED) as writer:
        for start in starts:
            table = read_snapshot(work / f"{start}.piece")
            writer.write_table(table.select(CLUSTERED.names).cast(CLUSTERED))
            sizes += np.bincount(table["cluster"].to_numpy(), minlength=known.count)
    shutil.rmtree(work)
    return sizes.tolist()


def _is_done(path: Path, source: str) -> bool:
    if not path.is_file():
        return False
    try:
        check_source(path, source, "")
    except UserError:  # of another table or other clusters: done again
        return False
    return True


def _piece(pairs: Path, start: int, photos: int, clusters: TextClusters) -> pa.Table:
    batches = read_rows(pairs, start, start + photos, SCHEMA.names)
    table = pa.Table.from_batches(batches)
    of_queries: list[list[int]] = []
    of_photos: list[int] = []
    for queries, photo in _clusters(table["texts"].to_pylist(), clusters):
        of_queries.append(queries)
        of_photos.append(photo)
    for field, column in zip(CLUSTER_FIELDS, (of_queries, of_photos), strict=True):
        table = table.append_column(pa.field(*field), pa.array(column, field[1]))
    return table


def _clusters(texts: list[list[str]], clusters: TextClusters) -> Iterator[tuple[list[int], int]]:
    """For each photo the clusters of its queries, and that of the mean of their embeddings."""
    ends = np.cumsum([len(row) for row in texts])
    vectors = clusters.encoder.encode([text for row in texts for text in row])
    of_queries = clusters.predict_vectors(vectors)
    means = np.stack([rows.mean(axis=0) for rows in np.split(vectors, ends[:-1])])
    of_photos = clusters.predict_vectors(means)
    for queries, photo in zip(np.split(of_queries, ends[:-1]), of_photos.tolist(), strict=True):
        yield queries.tolist(), photo
