"""Step 3: how alike the images of a product are, and which of them are kept.

python dataset/dataset_creation_steps/analyse_pairs.py X.parquet "X.parquet_*.embeddings"
python dataset/dataset_creation_steps/analyse_pairs.py X.parquet --threshold 0.6 0.5
"""

from __future__ import annotations

import argparse
import glob
from collections.abc import Sequence
from pathlib import Path

from dataset.options import add_mean_cosine_options
from visual_search.common.errors import UserError, print_next, run_command
from visual_search.common.files import written_atomically


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="analyse_pairs.py",
        description="Step 3: compare every image of the shop with every buyer's image of the same "
        "product (once), then keep the images whose mean cosine is above a threshold (any, in "
        "seconds). Draws a histogram.",
    )
    add = parser.add_argument
    add("parquet", type=Path, help="of get_pairs.py")
    add(
        "embeddings",
        nargs="?",
        help='of extract_features.py, a quoted pattern (default: "<parquet>_*.embeddings")',
    )
    add_mean_cosine_options(parser, "keep")
    return parser.parse_args(arguments)


def means_file(parquet: Path) -> Path:
    """`<Category>_mean_cosines.parquet`; its histogram (.png) lies beside it."""
    return parquet.with_name(f"{parquet.stem}_mean_cosines.parquet")


def selection_file(parquet: Path, threshold: float) -> Path:
    """`<Category>_mean_05.parquet`."""
    from dataset.dataset_creation_steps.mean_cosines import threshold_name

    return parquet.with_name(f"{parquet.stem}_mean_{threshold_name(threshold)}.parquet")


def analyse(
    parquet: Path, embeddings: str | None, thresholds: Sequence[float], min_images: int = 2
) -> None:
    """Write the table of means, unless it is there, a table for each threshold, and a histogram.

    `embeddings` is the pattern of the snapshots' names (None: `<parquet>_*.embeddings`), a
    threshold of the mean cosine in -1..1, `min_images` what a product must keep. Says what each
    threshold keeps.

    Raises:
        UserError: when there is no snapshot.
    """
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.mean_cosines import cut, draw_histogram, write_means

    pattern = embeddings or f"{glob.escape(str(parquet))}_*.embeddings"
    snapshots = sorted(map(Path, glob.glob(pattern)))
    if not snapshots:
        raise UserError(f"no file fits {pattern!r}: run extract_features.py {parquet} first")
    write_means(snapshots, means_file(parquet))
    means = pq.read_table(means_file(parquet))
    for threshold in thresholds:
        table, path = cut(means, threshold, min_images), selection_file(parquet, threshold)
        with written_atomically(path) as temporary:
            pq.write_table(table.replace_schema_metadata(), temporary)
        products = len(table["asin"].unique())
        print(f"above {threshold:g}: {table.num_rows} images of {products} products ({path})")
    draw_histogram(means_file(parquet), thresholds)
    print(f"histogram: {means_file(parquet).with_suffix('.png')}", flush=True)


def main() -> None:
    """Write the tables and the histogram, and say what comes next."""
    arguments = parse_arguments()
    parquet: Path = arguments.parquet
    analyse(parquet, arguments.embeddings, arguments.threshold, arguments.min_images)
    lowest = selection_file(parquet, min(arguments.threshold))
    print_next("dataset/dataset_creation_steps/download_images.py", lowest)


if __name__ == "__main__":
    run_command(main)
