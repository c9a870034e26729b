"""Step 4: keep the chosen images.

python dataset/dataset_creation_steps/download_images.py X_mean_05.parquet Y_mean_05.parquet
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.dataset_creation_steps.engine import (
    Filling,
    add_filling_options,
    failures_file,
    filling,
    in_project,
    print_failures,
    start_engine,
)
from visual_search.common.errors import UserError, print_next, run_command
from visual_search.common.files import write_csv, written_atomically

if TYPE_CHECKING:
    import pandas as pd

SOURCES = Path("dataset/amazon")
SELECTION = ["asin", "role", "url", "mean_cosine"]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="download_images.py",
        description="Step 4: download the images that analyse_pairs.py chose into folders of "
        "50,000, each content once, and write a table of those that are there. Killed at any "
        "moment, the same command goes on where it was.",
    )
    parser.add_argument(
        "selections",
        type=Path,
        nargs="*",
        help="<Category>_mean_05.parquet …; default: of each category that is here, or in "
        "dataset/amazon, the one of the lowest threshold",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=in_project(Path("dataset/images_mean_50k")),
        help="folder of the images (%(default)s)",
    )
    add_filling_options(parser)
    return parser.parse_args(arguments)


def selections_here() -> list[Path]:
    """What :func:`analyse_pairs` wrote here, in a folder here, or in `dataset/amazon`.

    Raises:
        UserError: where there is nothing.
    """
    for folder, pattern in ((Path(), "*"), (Path(), "*/*"), (in_project(SOURCES), "*")):
        found = sorted(folder.glob(f"{pattern}_mean_[0-9]*.parquet"), reverse=True)
        # The last of a category has the lowest threshold, which the others are part of.
        lowest = {str(path).rpartition("_mean_")[0]: path for path in found}
        if lowest:
            return sorted(lowest.values())
    raise UserError(
        f"there is no <Category>_mean_05.parquet here, nor in {in_project(SOURCES)}: "
        "run analyse_pairs.py first, or name its tables"
    )


def table_file(root: Path) -> Path:
    """The table of the images that are there, beside their folder."""
    return root.with_name(f"{root.name}.parquet")


def download_images(selections: Sequence[Path], root: Path, how: Filling) -> pd.DataFrame:
    """Download what is missing of step 3's tables, keep each content once, and say what came of it.

    Returns:
        The table of the images that are there, which is written beside their folder.

    Raises:
        UserError: when a table is missing or nothing could be had.
    """
    from dataset.dataset_creation_steps.image_store import ImageStore

    table = ImageStore(root, "asin").fill(read_selections(selections), how)
    failed, images = table[table["file"].isna()], table[table["file"].notna()]
    images = images.assign(image_path=images["file"], label=images["asin"])
    # A content under several labels teaches nothing but contradiction: the best fit keeps it.
    best = images.sort_values(["mean_cosine", "asin", "url"], ascending=[False, True, True])
    unique = best.drop_duplicates("sha256").sort_values(["label", "image_path"])
    columns = ["image_path", "label", "role", "url", "mean_cosine", "sha256", "bytes"]
    with written_atomically(table_file(root)) as temporary:
        unique[columns].to_parquet(temporary, index=False)
    write_csv(failures_file(root), failed[["asin", "role", "url", "reason"]])
    print_failures(Counter(failed["reason"].astype(str)), "not there")
    print(
        f"{len(unique)} images in {root}, {len(images) - len(unique)} copies of others left out, "
        f"{len(failed)} could not be had ({failures_file(root)}); table: {table_file(root)}",
        flush=True,
    )
    if unique.empty:
        raise UserError(
            f"no image could be had; {failures_file(root)} has the reasons (--retry-failed tries "
            "again)"
        )
    return unique


def read_selections(paths: Sequence[Path]) -> pd.DataFrame:
    """The images of one or several tables of step 3, each image of a product once.

    Raises:
        UserError: for a missing file or column.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.snapshots import row_count

    for path in paths:
        row_count(path, SELECTION)
    table = pd.concat([pq.read_table(path, columns=SELECTION).to_pandas() for path in paths])
    table = table.sort_values(["asin", "role", "url"], kind="stable")
    return table.drop_duplicates(["asin", "url"]).reset_index(drop=True)


def main() -> None:
    """Download and say what there is."""
    arguments = parse_arguments()
    start_engine(arguments.runner, arguments.ray_address)
    root: Path = arguments.output
    selections = arguments.selections or selections_here()
    print(f"reading {', '.join(map(str, selections))}", flush=True)
    download_images(selections, root, filling(arguments))
    step = "dataset/dataset_creation_steps/prepare_training_set.py"
    print_next(step, table_file(root), "--evaluation", "dataset/development_test_data")


if __name__ == "__main__":
    run_command(main)
