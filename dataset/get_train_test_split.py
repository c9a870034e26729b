"""Split a table by whole classes: what tests is of classes that training never saw.

Run from the repository root: python dataset/get_train_test_split.py --help
"""

from __future__ import annotations

import argparse
from inspect import signature
from pathlib import Path

from dataset.options import add_random_seed, print_training
from visual_search.common.errors import UserError, run_command
from visual_search.common.ranges import real_number, whole_number

TRAIN, TEST = "dataset_train.csv", "dataset_test.csv"
TRAIN_CLASSES, TEST_CLASSES = "classes_train.csv", "classes_test.csv"


OPTIONS = {
    "min_n_samples": "minmax: fewest images of a class that trains",
    "max_n_samples": "minmax: most images of a class that trains",
    "test_ratio": "freq: share of the classes that test, rounded up",
    "min_freq": "freq: of fewer classes with the same number of images, all train",
}


def add_split_options(parser: argparse.ArgumentParser, default_type: str | None) -> None:
    """Those of a split by classes; without a default type there is none unless asked for."""
    add = parser.add_argument
    add("--dataset_info", type=Path, required=True, help="the table; the split stands beside it")
    add_random_seed(parser)
    add(
        "--split_type",
        choices=("minmax", "freq"),
        default=default_type,
        help="minmax: classes of min_n_samples to max_n_samples images train, the rest tests; "
        "freq: of the classes of each number of images, test_ratio test"
        + (f" (default: {default_type})" if default_type else ""),
    )
    for name, text in OPTIONS.items():
        default = signature(split_by_classes).parameters[name].default
        kind = real_number(0, 1, above=True) if name == "test_ratio" else whole_number(0)
        add(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="get_train_test_split.py",
        description=f"Split a dataset_info.csv by whole classes into {TRAIN} and {TEST}, beside "
        f"it; {TRAIN_CLASSES} and {TEST_CLASSES} say which class went where.",
    )
    add_split_options(parser, "freq")
    return parser.parse_args(arguments)


def split_by_classes(
    file: Path,
    split_type: str = "freq",
    *,
    min_n_samples: int = 3,
    max_n_samples: int = 50,
    test_ratio: float = 0.1,
    min_freq: int = 10,
    random_seed: int = 28,
) -> dict[str, int]:
    """Write the two tables and the two lists of classes beside `file`; rows of each, by file name.

    :mod:`dataset.splits` says how classes are chosen for testing. Images that are test images
    already (`is_test`, `evaluation_status`, fold -2) are in neither.

    Raises:
        UserError: naming file and lines for bad input, such as one image of two classes; when no
            class would train, or none test.
    """
    import numpy as np
    import pandas as pd

    from dataset.splits import frequency_test_classes, image_numbers, marked, minmax_test_classes
    from visual_search.common.files import write_csv
    from visual_search.data.tables import read_common_table, training_rows

    table = read_common_table(file)
    trains = training_rows(table, file)
    image_numbers(table, file, trains)
    left_out = int((~trains).sum())
    if left_out:
        print(f"{left_out} images of the test split that {file} has already are left out")
    table = table[trains]
    if table.empty:
        raise UserError(f"{file} has no training row to split")
    classes, labels = pd.factorize(table["label"], sort=True)
    sizes = np.bincount(classes)
    if split_type == "minmax":
        tests = minmax_test_classes(sizes, min_n_samples, max_n_samples)
    else:
        tests = frequency_test_classes(sizes, test_ratio, min_freq, random_seed)
    frequencies = pd.DataFrame({"label": labels, "frequency": sizes})
    table, in_test = table.drop(columns="fold", errors="ignore"), tests[classes]
    tables = {
        TRAIN: marked(table[~in_test], test=False),
        TEST: marked(table[in_test], test=True),
        TRAIN_CLASSES: frequencies[~tests],
        TEST_CLASSES: frequencies[tests],
    }
    for name, part in tables.items():
        write_csv(file.parent / name, part)
    return {name: len(part) for name, part in tables.items()}


def run(arguments: argparse.Namespace) -> None:
    """Split as the command line says, and say what came of it."""
    given = {name: getattr(arguments, name) for name in ("split_type", "random_seed", *OPTIONS)}
    rows = split_by_classes(arguments.dataset_info, **given)
    folder = arguments.dataset_info.parent
    for table, classes in ((TRAIN, TRAIN_CLASSES), (TEST, TEST_CLASSES)):
        print(f"{folder / table}: {rows[table]} images of {rows[classes]} classes")
    print_training(folder / TRAIN, folder / TEST)


def main() -> None:
    """Split and say what came of it."""
    run(parse_arguments())


if __name__ == "__main__":
    run_command(main)
