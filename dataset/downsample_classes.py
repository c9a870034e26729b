"""Fewer classes and fewer images a class, for training on several large data sets together.

Run from the repository root: python dataset/downsample_classes.py --help
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.options import add_random_seed
from visual_search.common.errors import UserError, run_command
from visual_search.common.ranges import whole_number

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="downsample_classes.py",
        description="Keep classes with more than THRESHOLD training images, of each at most "
        "MAX_PER_CLASS images and, of all tables together, at most MAX_CLASSES classes, drawn at "
        "random. Test rows stay. Each table is written beside its own, with _downsampled added "
        "to its name. The universal-embedding recipe: --dataset_info product10k.csv "
        "landmarks.csv inshop.csv --threshold 15 150 20 --max_per_class 20.",
    )
    add = parser.add_argument
    add("--dataset_info", type=Path, nargs="+", required=True, help="one table or several")
    add(
        "--threshold",
        type=whole_number(0),
        nargs="+",
        default=[0],
        help="a class needs more training images than this: one number, or one for each table "
        "(default: 0)",
    )
    add("--max_per_class", type=whole_number(0), default=20, help="images, 0 for all (default: 20)")
    add(
        "--max_classes",
        type=whole_number(0),
        default=0,
        help="of all tables together (default: 0, all)",
    )
    add_random_seed(parser)
    return parser.parse_args(arguments)


def downsample(
    files: Sequence[Path],
    thresholds: Sequence[int],
    max_per_class: int = 20,
    max_classes: int = 0,
    random_seed: int = 28,
) -> dict[Path, pd.DataFrame]:
    """Write a smaller table beside each of `files`; the tables written, by file.

    Rows that do not train (`is_test`, `evaluation_status`, fold -2) are kept as they are. The same
    label in two tables is two classes.

    Args:
        thresholds: one for all of them, or one for each.
        max_per_class: training images of a class, drawn at random; 0 keeps all.
        max_classes: classes in all, drawn at random, all alike; 0 keeps all.

    Raises:
        UserError: naming file and line for bad input; for another number of thresholds than of
            tables; when no class of a table has more images than its threshold.
    """
    import numpy as np
    import pandas as pd

    from visual_search.common.files import write_csv
    from visual_search.data.class_choice import drawn_classes, places_within
    from visual_search.data.tables import read_common_table, training_rows

    if len(thresholds) not in (1, len(files)):
        raise UserError(
            f"--threshold has {len(thresholds)} numbers for {len(files)} tables; "
            "give one for all, or one for each"
        )
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("--dataset_info names a table twice")
    thresholds = list(thresholds) * (len(files) if len(thresholds) == 1 else 1)
    tables = [read_common_table(file) for file in files]
    trains = [training_rows(table, file) for table, file in zip(tables, files, strict=True)]
    labels = (table["label"][rows] for table, rows in zip(tables, trains, strict=True))
    classes = [pd.factorize(label, sort=True)[0] for label in labels]
    kept = list(map(_frequent, classes, thresholds, files))
    drawn = drawn_classes(np.concatenate(kept), max_classes, random_seed)
    kept = np.split(drawn, np.cumsum([len(part) for part in kept])[:-1])
    written = {}
    for file, table, rows, numbers, chosen in zip(
        files, tables, trains, classes, kept, strict=True
    ):
        stays = ~rows
        stays[rows] = chosen[numbers]
        if max_per_class:
            stays[rows] &= places_within(numbers, random_seed) < max_per_class
        path = file.with_name(f"{file.stem}_downsampled.csv")
        write_csv(path, table[stays])
        written[path] = table[stays]
    return written


def _frequent(classes: np.ndarray, threshold: int, file: Path) -> np.ndarray:
    """Which classes have more than `threshold` images, `(classes,)`, bool."""
    import numpy as np

    sizes = np.bincount(classes)
    if not (sizes > threshold).any():
        raise UserError(
            f"no class of {file} has more than {threshold} training images; the largest has "
            f"{sizes.max(initial=0)}"
        )
    return sizes > threshold


def main() -> None:
    """Write the smaller tables and say what is in them."""
    arguments = vars(parse_arguments())
    files, thresholds = arguments.pop("dataset_info"), arguments.pop("threshold")
    for path, table in downsample(files, thresholds, **arguments).items():
        print(f"{path}: {len(table)} images of {table['label'].nunique()} classes")
    print("next: name these tables in dataset.tables of a training config")


if __name__ == "__main__":
    run_command(main)
