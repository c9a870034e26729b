"""How much each photo looks like the photos of the other side of its product.

Of a product with shop photos p and buyers' photos u, all pairs are compared; a photo's figure is
the mean cosine over its pairs. It is computed once; a threshold is then a filter of the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.dataset_creation_steps.snapshots import fingerprint, read_snapshot, source_of
from visual_search.errors import UserError
from visual_search.files import written_atomically
from visual_search.progress import progress_bar

MEANS = pa.schema(
    [
        ("asin", pa.string()),
        ("role", pa.string()),  # "product" or "user"
        ("url", pa.string()),
        ("mean_cosine", pa.float64()),
        ("pairs", pa.int32()),  # over so many
    ]
)

BINS = np.linspace(-1.0, 1.0, 201)
"""Edges of the histogram of all pairs' cosines."""


@dataclass
class PairCounts:
    """What there was to compare."""

    counts: Counter[str] = field(default_factory=Counter)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(BINS) - 1, dtype=np.int64))
    """Pairs by cosine, between :data:`BINS`."""


def write_means(snapshots: Sequence[Path], output: Path) -> PairCounts | None:
    """Compare the photos of all products and write the table of means.

    Args:
        snapshots: of step 2.
        output: a parquet file with the columns of :data:`MEANS`. One that was made of these very
            snapshots is left as it is.

    Returns:
        What was compared; None where the table was there already.

    Raises:
        UserError: when a snapshot is damaged, when they are of several models or inputs, or when
            no product has photos of both sides.
    """
    source = _identity(snapshots)
    if output.is_file() and (pq.read_schema(output).metadata or {}).get(b"source") == source:
        return None
    _refuse_mixture(snapshots)
    found = PairCounts()
    schema = MEANS.with_metadata({b"source": source})
    with written_atomically(output) as temporary:
        with pq.ParquetWriter(temporary, schema) as writer:
            for path in progress_bar("comparing", "thousand", iterable=snapshots):
                writer.write_table(mean_cosines(read_snapshot(path), found).cast(schema))
        if not found.counts["pairs"]:
            raise UserError(
                f"no product in {snapshots[0]} … has an embedded photo of the shop and of a "
                "buyer; see the reasons in the .failures.csv of step 2"
            )
    return found


def _refuse_mixture(snapshots: Sequence[Path]) -> None:
    """Cosines between the embeddings of two models mean nothing, and pieces would overlap."""
    first, *others = snapshots
    source = source_of(first)
    for path in others:
        if source_of(path) != source:
            raise UserError(
                f"{first} and {path} were made from different inputs or models: run "
                "extract_features.py with --overwrite, or name the snapshots of one call"
            )


def _identity(snapshots: Sequence[Path]) -> bytes:
    facts = [(path.name, path.stat()) for path in snapshots]
    return fingerprint(
        *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)
    ).encode()


def mean_cosines(photos: pa.Table, found: PairCounts) -> pa.Table:
    """The rows of :data:`MEANS` of a snapshot: photos that have an embedding and a counterpart.

    Args:
        photos: asin, role, url, vector of length 1 (or null); a product's rows stand together.
        found: what was compared is added to it.
    """
    table = photos.filter(pc.is_valid(photos["vector"])).combine_chunks()
    found.counts["photos without an embedding"] += photos.num_rows - table.num_rows
    found.counts["photos with an embedding"] += table.num_rows
    means = np.full(table.num_rows, np.nan)
    pairs = np.zeros(table.num_rows, dtype=np.int32)
    if table.num_rows:
        flat = table["vector"].combine_chunks().flatten().to_numpy()
        vectors = flat.reshape(table.num_rows, -1)
        is_user = pc.equal(table["role"], "user").to_numpy(zero_copy_only=False)
        for start, stop in _products(table["asin"]):
            shop = start + np.flatnonzero(~is_user[start:stop])
            buyers = start + np.flatnonzero(is_user[start:stop])
            if not len(shop) or not len(buyers):
                found.counts["products without a counterpart"] += 1
                continue
            cosines = vectors[shop].astype(np.float64) @ vectors[buyers].astype(np.float64).T
            means[shop], pairs[shop] = cosines.mean(axis=1), len(buyers)
            means[buyers], pairs[buyers] = cosines.mean(axis=0), len(shop)
            found.histogram += np.histogram(np.clip(cosines, -1, 1), BINS)[0]
            found.counts["products compared"] += 1
            found.counts["pairs"] += cosines.size
    columns = [table["asin"], table["role"], table["url"], pa.array(means), pa.array(pairs)]
    rows = pa.Table.from_arrays(columns, schema=MEANS)
    return rows.filter(pa.array(pairs > 0))


def _products(asins: pa.ChunkedArray) -> Iterator[tuple[int, int]]:
    """Start and end of each product's rows."""
    codes = asins.combine_chunks().dictionary_encode().indices.to_numpy()
    edges = np.flatnonzero(np.diff(codes)) + 1
    starts = [0, *edges.tolist()]
    return zip(starts, [*edges.tolist(), len(codes)], strict=True)


def cut(means: pa.Table, threshold: float, min_images: int) -> pa.Table:
    """The photos whose mean cosine is above a threshold, of products that keep enough of them.

    Args:
        means: of :func:`write_means`.
        threshold: -1..1; a mean has to be above it.
        min_images: a product with fewer photos left goes: a single photo makes no pair.
    """
    kept = means.filter(pc.greater(means["mean_cosine"], threshold))
    codes = kept["asin"].combine_chunks().dictionary_encode().indices.to_numpy()
    enough = np.bincount(codes)[codes] >= min_images if len(codes) else np.zeros(0, dtype=bool)
    return kept.filter(pa.array(enough))


def threshold_name(threshold: float) -> str:
    """`05` for 0.5, `055` for 0.55: how a threshold stands in a file's name."""
    digits = f"{threshold:.4f}".rstrip("0").replace(".", "").replace("-", "minus")
    return digits if len(digits) > 1 else f"{digits}0"
