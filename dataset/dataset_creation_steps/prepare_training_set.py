"""Step 5: the tables that a phase trains on, without images of the evaluation sets.

python dataset/dataset_creation_steps/prepare_training_set.py dataset/images_mean_50k.parquet
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.dataset_creation_steps.engine import in_project
from dataset.options import add_mean_cosine_options
from visual_search.common.errors import UserError, run_command
from visual_search.common.files import write_csv
from visual_search.common.ranges import whole_number

if TYPE_CHECKING:
    import pandas as pd

LISTS = ("gallery.csv", "queries.csv")
"""What a folder in the challenge's layout holds."""


def evaluation_tables(places: Sequence[Path]) -> list[Path]:
    """The tables of some evaluation sets: csv files as they are, of folders their lists.

    Raises:
        UserError: for a place that is neither.
    """
    tables = []
    for place in places:
        found = [place] if place.is_file() else [place / n for n in LISTS if (place / n).is_file()]
        if not found:
            lists = " and ".join(LISTS)
            raise UserError(
                f"--evaluation {place}: neither a csv file nor a folder with {lists}; put "
                "the images that judge there, name them, or name none to look for no leaks "
                "(--evaluation alone; evaluation: [] in a config)"
            )
        tables += found
    return tables


DEFAULT_EVALUATION = Path("dataset/development_test_data")
LEAKS = "amazon_review_leaks.csv"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="prepare_training_set.py",
        description="Step 5: write amazon_review_mean_05_full_images.csv and …_06_… "
        "(image_path,label) of the images of step 4, less those that also stand in an evaluation "
        "set.",
    )
    add, judged = parser.add_argument, in_project(DEFAULT_EVALUATION)
    add(
        "table",
        type=Path,
        nargs="?",
        default=in_project(Path("dataset/images_mean_50k.parquet")),
        help="of download_images.py, beside the folder of the images (%(default)s)",
    )
    add_mean_cosine_options(parser, "have")
    add("--output", type=Path, help="folder of the tables (default: the table's)")
    add(
        "--evaluation",
        type=Path,
        nargs="*",
        default=[judged] if judged.is_dir() else [],
        help="tables, or folders with gallery.csv and queries.csv, of images that must not be "
        f"trained on (default: {DEFAULT_EVALUATION} where it exists)",
    )
    add(
        "--distance",
        type=whole_number(0, 64),
        default=4,
        help="bits in which the 64-bit hashes of near-duplicates differ at most (%(default)s)",
    )
    return parser.parse_args(arguments)


def prepare_training_set(
    table: Path,
    output: Path,
    thresholds: Sequence[float],
    evaluation: Sequence[Path],
    *,
    min_images: int = 2,
    distance: int = 4,
) -> list[Path]:
    """Write a table for each threshold, and say what it has; list what was left out in `LEAKS`.

    Args:
        table: of step 4; the images lie in the folder of its name without `.parquet`.
        thresholds: of the mean cosine; an image's has to be above it.
        evaluation: tables of images, or folders with such; what looks like one of them is left out.
        min_images: images a label must have.
        distance: bits in which the hashes of near-duplicates differ at most, 0..64.

    Raises:
        UserError: when a file is missing, or nothing is left.
    """
    import pandas as pd

    from dataset.dataset_creation_steps.mean_cosines import threshold_name
    from dataset.dataset_creation_steps.snapshots import row_count
    from visual_search.data.leak_record import Side, record

    row_count(table, ["image_path", "label", "mean_cosine"])
    tests = evaluation_tables(evaluation)
    images = pd.read_parquet(table).sort_values(["label", "image_path"])
    images = images[images["mean_cosine"] > min(thresholds)]
    leaked = leaked_images(images, table.with_suffix(""), output, tests, distance)
    images = images[~images["image_path"].isin(leaked)]
    written = []
    for threshold in thresholds:
        kept = images[images["mean_cosine"] > threshold]
        kept = kept[kept.groupby("label")["label"].transform("size") >= min_images]
        if kept.empty:
            raise UserError(f"no product has {min_images} images above {threshold:g} in {table}")
        path = output / f"amazon_review_mean_{threshold_name(threshold)}_full_images.csv"
        write_csv(path, kept[["image_path", "label"]])
        print(f"{path}: {len(kept)} images of {kept['label'].nunique()} products")
        written.append(path)
    facts = {"threshold": distance, "pairs": 0, "evaluation_photos": 0}
    for path in written:
        for test in tests:
            record(Side.of(path, table.with_suffix("")), Side.of(test), facts)
    return written


def leaked_images(
    images: pd.DataFrame, root: Path, output: Path, tests: Sequence[Path], distance: int
) -> set[str]:
    """The images that look like one of the tables `tests`; the pairs are listed in `LEAKS`.

    Their paths are relative to `root`.
    """
    import pandas as pd

    from visual_search.data.leaks import Leak, find_leaks, list_images

    found = []
    with tempfile.TemporaryDirectory(prefix="candidates_") as folder:
        candidates = Path(folder) / "candidates.csv"
        images[["image_path", "label"]].to_csv(candidates, index=False)
        if tests:
            train = list_images(candidates, root, trains=True)
            for test in tests:
                found += find_leaks(train, list_images(test, None, trains=False), distance)
    write_csv(output / LEAKS, pd.DataFrame(found, columns=Leak._fields))
    return {str(Path(leak.train_photo).relative_to(root)) for leak in found}


def main() -> None:
    """Write the tables, and say what there is."""
    arguments = parse_arguments()
    table: Path = arguments.table
    prepare_training_set(
        table,
        arguments.output or table.parent,
        arguments.threshold,
        arguments.evaluation,
        min_images=arguments.min_images,
        distance=arguments.distance,
    )
    if not arguments.evaluation:
        print("no evaluation set was named: the images are not checked for leaks")
    print(
        "next: python -m visual_search.main_phases --config config/phases.yml "
        f"(images: {table.with_suffix('')})"
    )


if __name__ == "__main__":
    run_command(main)
