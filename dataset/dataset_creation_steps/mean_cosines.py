"""How much each image looks like the images of the other side of its product.

Of a product, each of the shop's images is compared with each of the buyers'; an image's figure is
the mean cosine over its pairs. It is computed once; a threshold is then a filter of the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.dataset_creation_steps.snapshots import fingerprint, read_snapshot, source_of
from visual_search.common.errors import UserError
from visual_search.common.files import read_json, write_figure, write_json, written_atomically
from visual_search.common.progress import progress_bar

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
HISTOGRAM = "histogram_of_pairs"


def write_means(snapshots: Sequence[Path], output: Path) -> bool:
    """Compare the images of all products of some snapshots; write :data:`MEANS` and the counts.

    A table that was made of these very snapshots is left as it is; False is returned then.

    Raises:
        UserError: when a snapshot is damaged, when they are of several models or inputs, or when no
            product has images of both sides.
    """
    facts = [(path.name, path.stat()) for path in snapshots]
    source = fingerprint(
        *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)
    ).encode()
    counts = output.with_suffix(".json")
    made = output.is_file() and counts.is_file()  # the counts are written last
    if made and (pq.read_schema(output).metadata or {}).get(b"source") == source:
        return False
    # Cosines between the embeddings of two models mean nothing, and pieces would overlap.
    first, *others = snapshots
    for path in others:
        if source_of(path) != source_of(first):
            raise UserError(
                f"{first} and {path} were made from different inputs or models: run "
                "extract_features.py with --overwrite, or name the snapshots of one call"
            )
    found, histogram = Counter[str](), np.zeros(len(BINS) - 1, dtype=np.int64)
    schema = MEANS.with_metadata({b"source": source})
    with written_atomically(output) as temporary:
        with pq.ParquetWriter(temporary, schema) as writer:
            for path in progress_bar("comparing", "thousand", iterable=snapshots):
                writer.write_table(mean_cosines(read_snapshot(path), found, histogram).cast(schema))
        if not found["pairs"]:
            raise UserError(
                f"no product in {snapshots[0]} … has an embedded image of the shop and of a "
                "buyer; see the reasons in the .failures.csv of step 2"
            )
    write_json(counts, {**found, HISTOGRAM: histogram.tolist()})
    return True


def mean_cosines(images: pa.Table, found: Counter[str], histogram: np.ndarray) -> pa.Table:
    """The rows of :data:`MEANS` of a snapshot: images that have an embedding and a counterpart.

    Args:
        images: asin, role, url, vector of length 1 (or null); a product's rows stand together.
        found: what was compared is added to it.
        histogram: so are its pairs by cosine, between :data:`BINS`, `(200,)`, int64.
    """
    table = images.filter(pc.is_valid(images["vector"])).combine_chunks()
    found["photos without an embedding"] += images.num_rows - table.num_rows
    found["photos with an embedding"] += table.num_rows
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
                found["products without a counterpart"] += 1
                continue
            cosines = vectors[shop].astype(np.float64) @ vectors[buyers].astype(np.float64).T
            means[shop], pairs[shop] = cosines.mean(axis=1), len(buyers)
            means[buyers], pairs[buyers] = cosines.mean(axis=0), len(shop)
            histogram += np.histogram(np.clip(cosines, -1, 1), BINS)[0]
            found["products compared"] += 1
            found["pairs"] += cosines.size
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
    """The images whose mean is above a threshold, -1..1, of products that keep `min_images`.

    A single image makes no pair.
    """
    kept = means.filter(pc.greater(means["mean_cosine"], threshold))
    codes = kept["asin"].combine_chunks().dictionary_encode().indices.to_numpy()
    enough = np.bincount(codes)[codes] >= min_images if len(codes) else np.zeros(0, dtype=bool)
    return kept.filter(pa.array(enough))


def threshold_name(threshold: float) -> str:
    """`05` for 0.5, `055` for 0.55: how a threshold stands in a file's name."""
    digits = f"{threshold:.4f}".rstrip("0").replace(".", "").replace("-", "minus")
    return digits if len(digits) > 1 else f"{digits}0"


def draw_histogram(table: Path, thresholds: Sequence[float]) -> None:
    """How many pairs and how many images have which cosine, as a PNG beside the table of means."""
    from matplotlib.figure import Figure

    means = pq.read_table(table, columns=["mean_cosine"])["mean_cosine"].to_numpy()
    pairs = read_json(table.with_suffix(".json"))[HISTOGRAM]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.stairs(pairs, BINS, fill=True)
    left.set(title="pairs (image of the shop x buyer's image)", xlabel="cosine", ylabel="pairs")
    right.hist(means, bins=BINS)
    right.set(title="images", xlabel="mean cosine over an image's pairs", ylabel="images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        for threshold in thresholds:
            axes.axvline(threshold, color="crimson", linestyle="--", linewidth=1)
    write_figure(table.with_suffix(".png"), figure)
