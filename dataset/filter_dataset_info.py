"""Clean a table of images: too small, too large, and near-duplicates of a better image.

Run from the repository root: python dataset/filter_dataset_info.py --help
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.options import add_threshold
from visual_search.common.errors import UserError, print_next, run_command
from visual_search.common.ranges import whole_number

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

IMAGE, FATE = ["file_name", "label"], ["reason", "duplicate_of", "distance"]
"""Columns of the report: which image it is, and what became of it."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="filter_dataset_info.py",
        description="Write <name>_filtered.csv and, of what was left out, <name>_removed.csv "
        "(what, why, duplicate of which, distance) beside a dataset_info.csv. Only rows that "
        "train are ever left out. Of near-duplicates the largest image stays, of equally large "
        "ones the first; every image left out has a kept one within the threshold.",
    )
    add = parser.add_argument
    add("--dataset_info", type=Path, required=True, help="the table to clean")
    add("--dedup", action="store_true", help="leave out near-duplicates within a class")
    add_threshold(parser, "the hashes of near-duplicates differ")
    for option, words in (("--min_size", "below"), ("--max_size", "above")):
        add(
            option,
            type=whole_number(0),
            default=0,
            help=f"leave out images with a side {words}, in pixels (default: 0, none)",
        )
    add(
        "--contact-sheet",
        action="store_true",
        help="draw the groups as <name>_duplicates.html, the least similar first",
    )
    return parser.parse_args(arguments)


def filter_table(
    file: Path,
    *,
    dedup: bool = False,
    threshold: int = 10,
    min_size: int = 0,
    max_size: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to keep, as text and in their order, and the report of those left out.

    Args:
        threshold: most bits in which near-duplicates differ, 0..64.
        min_size: of the shorter side, pixels; 0 is no limit.
        max_size: of the longer side, likewise.

    Raises:
        UserError: naming file, column and line of what is wrong in the table.
    """
    import pandas as pd

    from visual_search.data.tables import image_names, read_common_table, training_rows

    table = read_common_table(file)
    if table.empty:
        raise UserError(f"{file} lists no image")
    trains = training_rows(table, file)
    names = {"file_name": image_names(table).array, "label": table["label"].array}
    report = pd.DataFrame({**names, **dict.fromkeys(FATE, "")}, dtype=object)
    if min_size or max_size or dedup:
        sides, unreadable = _sides(table, file, names["file_name"])
        if max_size:
            large = trains & (sides.max(axis=1) > max_size)
            report.loc[large, "reason"] = f"a side above {max_size} px"
        small = trains & (sides.min(axis=1) < min_size)
        report.loc[small, "reason"] = f"a side below {min_size} px"
        cut = [row for row in unreadable if trains[row]]
        report.loc[cut, "reason"] = [f"unreadable: {unreadable[row]}" for row in cut]
    if dedup:
        rows = trains & (report["reason"] == "").to_numpy()
        images = report[rows].assign(pixels=sides[rows].prod(axis=1)).drop_duplicates(IMAGE)
        images = _judged(images, table.iloc[images.index], file, threshold)
        # Rows of the same file (several boxes in it) are one image: they stay or go together.
        of_rows = report.loc[rows, IMAGE].merge(images, on=IMAGE, how="left")
        report.loc[rows, FATE] = of_rows[FATE].to_numpy()
    stays = (report["reason"] == "").to_numpy()
    return table[stays], report[~stays]


def _sides(
    table: pd.DataFrame, file: Path, names: Iterable[str]
) -> tuple[np.ndarray, dict[int, str]]:
    """`(rows, 2)`, int64: width and height in pixels, from the images where no columns say it.

    And by their places, why images could not be read, whose sides are 0.
    """
    import numpy as np

    from visual_search.common.progress import progress_bar
    from visual_search.data.dataset_info import read_each
    from visual_search.data.image_files import UnreadableImage, stored_size
    from visual_search.data.schema import integers

    if {"width", "height"} <= set(table.columns):
        columns = [integers(table, column, file) for column in ("width", "height")]
        return np.stack(columns, axis=1), {}
    answers = read_each((file.parent / name for name in names), stored_size)
    sides, unreadable = np.zeros((len(table), 2), dtype=np.int64), {}
    for row, answer in enumerate(progress_bar("sizes", "img", iterable=answers, total=len(table))):
        if isinstance(answer, UnreadableImage):
            unreadable[row] = str(answer)
        else:
            sides[row] = answer
    return sides, unreadable


def _judged(images: pd.DataFrame, table: pd.DataFrame, file: Path, threshold: int) -> pd.DataFrame:
    """Rows of a report with `pixels`, with the fate of those that are near-duplicates of another.

    `table` has the same rows as they stand in `file`.
    """
    import numpy as np
    import pandas as pd

    from visual_search.data.duplicates import find_removals, hashes_of_table

    paths = [file.parent / name for name in images["file_name"]]
    hashes, unreadable = hashes_of_table(table, file, paths)
    cut = images.index[list(unreadable)]
    images.loc[cut, "reason"] = [f"unreadable: {reason}" for reason in unreadable.values()]
    readable = images.drop(cut)
    removed, kept, distance = find_removals(
        np.delete(hashes, list(unreadable)),
        readable["pixels"].to_numpy(),
        pd.factorize(readable["label"])[0],
        threshold,
        progress=True,
    )
    gone = readable.index[removed]
    images.loc[gone, "reason"] = "near-duplicate"
    images.loc[gone, "duplicate_of"] = readable["file_name"].to_numpy()[kept]
    images.loc[gone, "distance"] = distance
    return images


def main() -> None:
    """Write the tables and say what was left out."""
    arguments = vars(parse_arguments())
    file: Path = arguments.pop("dataset_info")
    sheet = arguments.pop("contact_sheet")
    if not any(arguments[name] for name in ("dedup", "min_size", "max_size")):
        raise UserError("nothing is asked for: name --dedup, --min_size or --max_size")
    table, removed = filter_table(file, **arguments)
    from visual_search.common.files import write_csv

    filtered = file.with_name(f"{file.stem}_filtered.csv")
    report = file.with_name(f"{file.stem}_removed.csv")
    for path, rows in ((filtered, table), (report, removed)):
        write_csv(path, rows)
    print(f"{filtered}: {len(table)} rows stay; {report}: {len(removed)} left out")
    for reason, count in removed["reason"].value_counts().head(10).items():
        print(f"  {count} {reason}")
    if sheet:
        _draw(file, removed)
    print_next("dataset/get_kfold_split.py", "--dataset_info", filtered)


def _draw(file: Path, removed: pd.DataFrame) -> None:
    from dataset.contact_sheet import draw_groups

    copies = removed[removed["duplicate_of"] != ""]
    copies = copies.sort_values("distance", ascending=False, kind="stable")
    pairs = copies[["duplicate_of", "file_name", "distance"]].itertuples(index=False, name=None)
    target = file.with_name(f"{file.stem}_duplicates.html")
    note = "Green: it stays. Beside it what is left out, and in how many bits it differs."
    drawn, groups = draw_groups(
        target,
        f"Near-duplicates in {file.name}",
        note,
        "right",
        ((kept, name, f"{bits} bits") for kept, name, bits in pairs),
        file.parent,
    )
    print(f"{target}: {drawn} of {groups} groups drawn" if groups else "no group to draw")


if __name__ == "__main__":
    run_command(main)
