"""List everything that is wrong in a table of images.

Run from the repository root: python dataset/check_table.py --help
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from visual_search.common.errors import UserError, run_command

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 1000
FILES = ("sample", "all", "none")
USES = {
    **dict.fromkeys(
        ("file_name", "image_path"), "train on it: name it in dataset.tables (dataset/README.md)"
    ),
    "img_path": "judge by it: name its folder in dataset.dev_set.eval_root, or by --data-folder",
    "name": "train on it: name its folder in dataset.product10k.root",
}
"""By the column of the paths, what a table is for."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="check_table.py",
        description="List all problems of a table of images with their lines: dataset_info.csv, "
        "folds.csv, Amazon pairs (image_path,label), gallery.csv, queries.csv or a list of "
        "Product10K. Columns, types, boxes within the images, and whether the images exist.",
    )
    add = parser.add_argument
    add("table", type=Path, help="the csv file")
    add("--root", type=Path, help="folder that its paths are relative to (default: the table's)")
    add(
        "--files",
        choices=FILES,
        default="sample",
        help=f"images that are looked at: {SAMPLE} spread over the table, all (their headers are "
        "read, too, and compared with width and height), or none (default: sample)",
    )
    return parser.parse_args(arguments)


class Problem(NamedTuple):
    """Something wrong in a table."""

    line: int
    """Of the file, on which its row begins; the header is on line 1."""
    column: str
    what: str


class Checked(NamedTuple):
    """What came of checking a table."""

    problems: list[Problem]
    """In the order of their lines."""
    looked_at: int
    """Images whose files were looked at."""
    notes: list[str]
    """What may be meant: labels or ids that are nearly equal, with their lines."""
    use: str
    """What such a table is for, in words."""


def check(file: Path, root: Path | None = None, files: str = "sample") -> Checked:
    """Everything that is wrong in a table; its paths are relative to `root`, or its own folder.

    Args:
        files: one of `FILES`: which images are looked at.

    Raises:
        UserError: when it is no table of images at all: no csv, no row, a missing column.
    """
    from visual_search.data.leak_record import product10k_folder
    from visual_search.data.tables import read_table, values_of
    from visual_search.data.values import twins

    table = read_table(file, [])
    column = _path_column(file, table)
    folder = root or (product10k_folder(file) if column == "name" else file.parent)
    looked_at = {"all": table, "sample": table[:: max(len(table) // SAMPLE, 1)], "none": table[:0]}[
        files
    ]
    looked_at = looked_at[looked_at[column].str.strip() != ""]
    names = [name for name in ("label", "product_id", "class") if name in table.columns]
    found = [*_split_problems(table, file), *_cell_problems(table, column)]
    for name in names:
        found += _row_problems(table, column, name)
    found += _file_problems(looked_at, column, folder, sizes=files == "all")
    notes = [pair for name in names for pair in twins(values_of(table[name]), file)]
    return Checked(sorted(found), len(looked_at), notes, USES[column])


def _path_column(file: Path, table: pd.DataFrame) -> str:
    """The column with the paths of a table that can be checked."""
    from visual_search.data.schema import BOX_COLUMNS, PATH_COLUMNS
    from visual_search.data.tables import columns_of

    columns = table.columns.tolist()
    found = [column for column in PATH_COLUMNS if column in columns]
    if not found and {"name", "class"} <= set(columns):
        found = ["name"]
    if len(found) != 1:
        raise UserError(
            f"{file} needs the images' paths in one of the columns {', '.join(PATH_COLUMNS)}; it "
            f"has {columns_of(table)}"
        )
    needed = ["class" if found == ["name"] else "label"]
    if found == ["img_path"]:
        needed = ["user_img_id", *BOX_COLUMNS] if "user_img_id" in columns else ["seller_img_id"]
    missing = [column for column in needed if column not in columns]
    if missing:
        raise UserError(f"{file} has no column {', '.join(missing)}; it has {columns_of(table)}")
    if table.empty:
        raise UserError(f"{file} lists no image")
    return found[0]


def _split_problems(table: pd.DataFrame, file: Path) -> Iterator[Problem]:
    from visual_search.data.tables import refuse_other_splits

    try:
        if "label" in table.columns:
            refuse_other_splits(table, file)
    except UserError as error:
        yield Problem(1, "header:", str(error).removeprefix(f"{file} "))


def _cell_problems(table: pd.DataFrame, column: str) -> Iterator[Problem]:
    from visual_search.data.schema import schema_errors

    # What Product10K calls `name` and `class` has rules under other names.
    ours = {"name": "file_name", "class": "seller_img_id"} if column == "name" else {}
    theirs = {ours[name]: name for name in ours}
    for fault in schema_errors(table.rename(columns=ours)):
        name = theirs.get(fault.column, fault.column)
        for line, cell in table[name].iloc[fault.rows].items():
            yield Problem(int(str(line)), name, f"is {cell!r}; {fault.expected}")


def _row_problems(table: pd.DataFrame, column: str, label: str) -> Iterator[Problem]:
    """One image under two labels, and rows that are there twice.

    A query is an image and its box: two products on one photograph are two queries.
    """
    import pandas as pd

    from visual_search.data.schema import BOX_COLUMNS, boxes_of, is_blank
    from visual_search.data.tables import values_of

    table = table[~is_blank(table[column]) & ~is_blank(table[label])]
    image = table[column].str.strip().map(os.path.normpath)
    lines = pd.Series(table.index, index=table.index)
    rows = pd.DataFrame({"image": image, "label": values_of(table[label])})
    if set(BOX_COLUMNS) <= set(table.columns):
        rows["image"] += " " + table[list(BOX_COLUMNS)].apply(values_of).agg(",".join, axis=1)
    rows["bbox"] = ""
    if "bbox" in table.columns:
        rows["bbox"] = list(map(str, boxes_of(table["bbox"])[0].tolist()))
    first = lines.groupby(rows["image"]).transform("first")
    for line in lines[rows["label"] != rows["label"].loc[first].to_numpy()]:
        what = f"is {table[label][line]!r}, but line {first[line]} has this image under "
        yield Problem(line, label, f"{what}{table[label][first[line]]!r}")
    again = rows.duplicated()
    first = lines.groupby([rows[name] for name in rows]).transform("first")
    for line in lines[again]:
        yield Problem(line, column, f"is {table[column][line]!r}, as line {first[line]} has it")


def _file_problems(
    table: pd.DataFrame, column: str, folder: Path, *, sizes: bool
) -> Iterator[Problem]:
    """Missing images; with `sizes` also unreadable ones, other sizes, and boxes outside."""
    import numpy as np

    from visual_search.common.progress import progress_bar
    from visual_search.data.dataset_info import read_each
    from visual_search.data.image_files import UnreadableImage, stored_size
    from visual_search.data.images import clip_box
    from visual_search.data.schema import numbers_of
    from visual_search.data.tables import boxes_in

    told = np.full((len(table), 2), np.nan)
    if sizes and {"width", "height"} <= set(table.columns):
        told = np.stack([numbers_of(table["width"]), numbers_of(table["height"])], axis=1)
    answers = read_each(
        (folder / name for name in table[column]), stored_size if sizes else _exists
    )
    rows = zip(table.index, table[column], told, boxes_in(table), answers, strict=True)
    with progress_bar("looking at images", "img", total=len(table), iterable=rows) as bar:
        for line, name, size, box, answer in bar:
            if isinstance(answer, UnreadableImage):
                yield Problem(line, column, f"is {name!r}; {answer}")
            elif np.isfinite(size).all() and tuple(size) != answer:
                width, height = size.astype(int)
                what = f"is {width} x {height}, but the image has {answer[0]} x {answer[1]}"
                yield Problem(line, "width", what)
            elif sizes and box and not np.isfinite(size).all() and clip_box(box, *answer) != box:
                what = (
                    f"has the box {box}, which reaches outside the image, {answer[0]} x {answer[1]}"
                )
                yield Problem(line, column, what)


def _exists(path: Path) -> tuple[int, int]:
    from visual_search.data.image_files import open_file

    open_file(path).close()
    return 0, 0


def main() -> None:
    """Print the problems; the exit status is 2 where there are any."""
    arguments = parse_arguments()
    found = check(arguments.table, arguments.root, arguments.files)
    for problem in found.problems:
        print(f"{arguments.table} line {problem.line}: {problem.column} {problem.what}")
    for note in found.notes:
        print(f"nearly equal, is one meant? {note}")
    if found.problems:
        raise UserError(
            f"{arguments.table} has {len(found.problems)} problems; mend the lines above"
        )
    print(
        f"{arguments.table}: nothing is wrong ({found.looked_at} image files looked at); "
        f"{found.use}"
    )


if __name__ == "__main__":
    run_command(main)
