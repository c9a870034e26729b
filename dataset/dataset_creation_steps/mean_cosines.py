"""How much each image looks like the images of the other side of its product.

Of a product, each of the shop's images is compared with each of the buyers'; an image's figure is
the mean cosine over its pairs. It is computed once; a threshold is then a filter of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.dataset_creation_steps.snapshots import fingerprint, read_snapshot, source_of
from visual_search.common.errors import UserError
from visual_search.common.files import write_figure, written_atomically
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


def write_means(snapshots: Sequence[Path], output: Path) -> None:
    """Compare the images of all products of some snapshots; write :data:`MEANS`.

    A table that was made of these very snapshots is left as it is.

    Raises:
        UserError: when a snapshot is damaged, when they are of several models or inputs, or when no
            product has images of both sides.
    """
    facts = [(path.name, path.stat()) for path in snapshots]
    source = fingerprint(
        *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)
    ).encode()
    if output.is_file() and (pq.read_schema(output).metadata or {}).get(b"source") == source:
        return
    # Cosines between the embeddings of two models mean nothing, and pieces would overlap.
    first, *others = snapshots
    for path in others:
        if source_of(path) != source_of(first):
            raise UserError(
                f"{first} and {path} were made from different inputs or models: run "
                "extract_features.py with --overwrite, or name the snapshots of one call"
            )
    schema, compared = MEANS.with_metadata({b"source": source}), 0
    with written_atomically(output) as temporary:
        with pq.ParquetWriter(temporary, schema) as writer:
            for path in progress_bar("comparing", "thousand", iterable=snapshots):
                table = mean_cosines(read_snapshot(path))
                writer.write_table(table.cast(schema))
                compared += table.num_rows
        if not compared:
            raise UserError(
                f"no product in {first} … has an embedded image of the shop and of a buyer; see "
                "the reasons in the .failures.csv of step 2"
            )


def mean_cosines(images: pa.Table) -> pa.Table:
    """The rows of :data:`MEANS` of a snapshot: images that have an embedding and a counterpart.

    Args:
        images: asin, role, url, vector of length 1 (or null).
    """
    table = images.filter(pc.is_valid(images["vector"])).combine_chunks()
    if not table.num_rows:
        return MEANS.empty_table()
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    vectors = flat.reshape(table.num_rows, -1).astype(np.float64)
    products = table["asin"].combine_chunks().dictionary_encode().indices.to_numpy()
    side = 2 * products + pc.equal(table["role"], "user").to_numpy(zero_copy_only=False)
    other = side ^ 1
    # The mean of an image's cosines is its cosine with the mean of the other side's vectors.
    sums = np.zeros(((side.max() | 1) + 1, vectors.shape[1]))
    np.add.at(sums, side, vectors)
    pairs = np.bincount(side, minlength=len(sums))[other]
    means = np.einsum("nd,nd->n", vectors, sums[other]) / np.maximum(pairs, 1)
    columns = [table["asin"], table["role"], table["url"], pa.array(means)]
    rows = pa.Table.from_arrays([*columns, pa.array(pairs, pa.int32())], schema=MEANS)
    return rows.filter(pa.array(pairs > 0))


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
    """How many images have which mean cosine, as a PNG beside the table of means."""
    from matplotlib.figure import Figure

    means = pq.read_table(table, columns=["mean_cosine"])["mean_cosine"].to_numpy()
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(means, bins=200, range=(-1.0, 1.0))
    axes.set(xlabel="mean cosine over an image's pairs", ylabel="images")
    axes.grid(alpha=0.3)
    for threshold in thresholds:
        axes.axvline(threshold, color="crimson", linestyle="--", linewidth=1)
    write_figure(table.with_suffix(".png"), figure)
