"""List everything that is wrong in a table of photos.

Run from the repository root: python dataset/check_table.py --help
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from visual_search.common.errors import UserError, exit_with_sentence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SAMPLE = 1000
FILES = ("sample", "all", "none")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="check_table.py",
        description="List all problems of a table of photos with their lines: dataset_info.csv, "
        "folds.csv, Amazon pairs (image_path,label), gallery.csv or queries.csv. Columns, types, "
        "boxes within the photos, and whether the photos exist.",
    )
    parser.add_argument("table", type=Path, help="the csv file")
    parser.add_argument(
        "--root", type=Path, help="folder that its paths are relative to (default: the table's)"
    )
    parser.add_argument(
        "--files",
        choices=FILES,
        default="sample",
        help=f"photos that are looked at: {SAMPLE} spread over the table, all (their headers are "
        "read, too, and compared with width and height), or none (default: sample)",
    )
    return parser.parse_args(arguments)


class Problem(NamedTuple):
    """Something wrong in a table."""

    line: int
    """Of the file, on which its row begins; the header is on line 1."""
    column: str
    what: str


def problems(file: Path, root: Path | None = None, files: str = "sample") -> Iterator[Problem]:
    """Everything that is wrong in a table, chunk by chunk in the order of the rows.

    Args:
        file: the csv file.
        root: folder that its paths are relative to; None is the file's own.
        files: one of `FILES`: which photos are looked at.

    Raises:
        UserError: when it is no table of photos at all: no csv, no row, a missing column.
    """
    from visual_search.common.progress import progress_bar
    from visual_search.data.tables import table_chunks

    path_column, rows = _kind(file)
    stride = {"sample": max(rows // SAMPLE, 1), "all": 1, "none": 0}[files]
    folder = file.parent if root is None else root
    with progress_bar(f"checking {file.name}", "row", total=rows) as bar:
        for table in table_chunks(file):
            numbers = table.index.tolist()
            found = [
                *_cell_problems(table, numbers),
                *_file_problems(table, numbers, path_column, folder, stride, sizes=files == "all"),
            ]
            yield from sorted(found)
            bar.update(len(table))


def _kind(file: Path) -> tuple[str, int]:
    """The column with the paths, and the number of rows, of a table that can be checked."""
    from visual_search.data.schema import BOX_COLUMNS, PATH_COLUMNS
    from visual_search.data.tables import table_chunks

    chunks = table_chunks(file)
    table = next(chunks)
    columns = table.columns.tolist()
    found = [column for column in PATH_COLUMNS if column in columns]
    if len(found) != 1:
        raise UserError(
            f"{file} needs the photos' paths in one of the columns {', '.join(PATH_COLUMNS)}; it "
            f"has {', '.join(columns)}"
        )
    needed = {"img_path": [], "file_name": ["label"], "image_path": ["label"]}[found[0]]
    if found == ["img_path"]:
        needed = ["user_img_id", *BOX_COLUMNS] if "user_img_id" in columns else ["seller_img_id"]
    missing = [column for column in needed if column not in columns]
    if missing:
        raise UserError(f"{file} has no column {', '.join(missing)}; it has {', '.join(columns)}")
    rows = len(table) + sum(map(len, chunks))
    if not rows:
        raise UserError(f"{file} lists no photo")
    return found[0], rows


def _cell_problems(table: pd.DataFrame, lines: list[int]) -> Iterator[Problem]:
    from visual_search.data.schema import schema_errors

    for fault in schema_errors(table):
        cells = table[fault.column]
        for row in fault.rows.tolist():
            yield Problem(lines[row], fault.column, f"is {cells.iloc[row]!r}; {fault.expected}")


def _file_problems(
    table: pd.DataFrame, lines: list[int], column: str, folder: Path, stride: int, *, sizes: bool
) -> Iterator[Problem]:
    """Photos that are missing; with `sizes` also unreadable ones and those of another size."""
    import numpy as np

    from visual_search.data.dataset_info import read_each
    from visual_search.data.image_files import UnreadableImage, stored_size

    if not stride:
        return
    names = table[column].tolist()
    asked = [row for row in range(0, len(names), stride) if names[row].strip()]
    answers = read_each((folder / names[row] for row in asked), stored_size if sizes else _exists)
    told = _told_sizes(table) if sizes else None
    for row, answer in zip(asked, answers, strict=True):
        if isinstance(answer, UnreadableImage):
            yield Problem(lines[row], column, f"is {names[row]!r}; {answer}")
        elif told is not None and np.isfinite(told[row]).all() and tuple(told[row]) != answer:
            width, height = told[row].astype(int)
            what = f"is {width} x {height}, but the photo has {answer[0]} x {answer[1]}"
            yield Problem(lines[row], "width", what)


def _told_sizes(table: pd.DataFrame) -> np.ndarray | None:
    """`(rows, 2)`, float64, width and height by the table, NaN where a cell is no number."""
    import numpy as np

    from visual_search.data.schema import numbers_of

    if not {"width", "height"} <= set(table.columns):
        return None
    return np.stack([numbers_of(table["width"]), numbers_of(table["height"])], axis=1)


def _exists(path: Path) -> tuple[int, int]:
    from visual_search.data.image_files import UnreadableImage

    if not path.is_file():
        raise UnreadableImage("the file does not exist")
    return 0, 0


def main() -> None:
    """Print the problems; the exit status is 2 where there are any."""
    arguments = parse_arguments()
    count = 0
    for problem in problems(arguments.table, arguments.root, arguments.files):
        print(f"{arguments.table} line {problem.line}: {problem.column} {problem.what}")
        count += 1
    if count:
        raise UserError(f"{arguments.table} has {count} problems; mend the lines above")
    looked = {"sample": f"{SAMPLE} of its photos", "all": "all photos", "none": "no photo"}
    print(
        f"{arguments.table}: nothing is wrong ({looked[arguments.files]} looked at); train on it: "
        "name it in dataset.tables (dataset/README.md)"
    )


if __name__ == "__main__":
    exit_with_sentence(main)
