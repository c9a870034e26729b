"""Folds for cross-validation, stratified by label.

Run from the repository root: python dataset/get_kfold_split.py --help
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dataset import get_train_test_split
from dataset.options import print_training
from visual_search.common.errors import UserError, run_command
from visual_search.common.ranges import whole_number

if TYPE_CHECKING:
    import pandas as pd


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="get_kfold_split.py",
        description="Write folds.csv beside a dataset_info.csv: the same rows with a column fold, "
        "0 to k-1, and -2 for those of a test split that the table already has; "
        "folds_train_only.csv (all -1: always train) and folds_test_only.csv (all -2: always "
        "test) use the data set for one thing. With --split_type it splits by whole classes, as "
        "get_train_test_split.py does.",
    )
    add = parser.add_argument
    add("--k", type=whole_number(2), default=5, help="number of folds (default: 5)")
    add("--save_name", default="folds", help="of the files, in front of .csv (default: folds)")
    add(
        "--whole_classes",
        action="store_true",
        help="keep a class in one fold, so that what is held out is of classes never seen",
    )
    get_train_test_split.add_split_options(parser, None)
    return parser.parse_args(arguments)


def write_folds(
    file: Path,
    k: int = 5,
    random_seed: int = 28,
    save_name: str = "folds",
    whole_classes: bool = False,
) -> dict[str, pd.DataFrame]:
    """Write the three tables beside `file`, and return them by name; an image's rows share a fold.

    Rows of a test split that the table already has (`is_test`, `evaluation_status`, fold -2) get
    fold -2, rows that a column `fold` puts at -1 keep it, and the others are spread into `k` folds.

    Args:
        whole_classes: keep a class in one fold instead of spreading its images over all.

    Raises:
        UserError: naming file and lines for bad input, such as one image of two classes; when there
            are fewer images (or classes) than folds.
    """
    import numpy as np
    import pandas as pd

    from dataset.splits import class_folds, image_numbers, marked, stratified_folds
    from visual_search.common.files import write_csv
    from visual_search.data.schema import ALWAYS_TEST, ALWAYS_TRAIN, numbers_of
    from visual_search.data.tables import read_common_table, training_rows

    if not save_name or Path(save_name).name != save_name:
        raise UserError(f"--save_name {save_name!r} must be a plain file name, without a folder")
    table = read_common_table(file)
    folds = np.where(training_rows(table, file), ALWAYS_TRAIN, ALWAYS_TEST)
    spread = folds == ALWAYS_TRAIN
    if "fold" in table.columns:
        spread &= numbers_of(table["fold"]) != ALWAYS_TRAIN
    if not spread.any():
        raise UserError(f"{file} has no row to spread over the folds")
    images, _ = pd.factorize(image_numbers(table, file, np.where(spread, 0, folds))[spread])
    classes, _ = pd.factorize(table["label"][spread], sort=True)
    first = np.unique(images, return_index=True)[1]
    choose = class_folds if whole_classes else stratified_folds
    folds[spread] = choose(classes[first], k, random_seed)[images]
    tables = {
        f"{save_name}.csv": table.assign(fold=folds),
        f"{save_name}_train_only.csv": marked(table, test=False).assign(fold=ALWAYS_TRAIN),
        f"{save_name}_test_only.csv": marked(table, test=True).assign(fold=ALWAYS_TEST),
    }
    for name, part in tables.items():
        write_csv(file.parent / name, part)
    return tables


def main() -> None:
    """Write the folds, or the split by classes, and say what came of it."""
    arguments = parse_arguments()
    if arguments.split_type:
        if (arguments.k, arguments.save_name, arguments.whole_classes) != (5, "folds", False):
            raise UserError(
                "--split_type makes no folds: leave out --k, --save_name, --whole_classes"
            )
        get_train_test_split.run(arguments)
        return
    file = arguments.dataset_info
    tables = write_folds(
        file, arguments.k, arguments.random_seed, arguments.save_name, arguments.whole_classes
    )
    for name, table in tables.items():
        counts = table["fold"].value_counts().sort_index()
        words = ", ".join(f"fold {fold}: {rows}" for fold, rows in counts.items())
        print(f"{file.parent / name}: {len(table)} rows; {words}")
    folds = file.parent / next(iter(tables))
    print_training(folds, folds, 0)


if __name__ == "__main__":
    run_command(main)
