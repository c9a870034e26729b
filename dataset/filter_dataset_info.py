"""Clean a table of images: too small, too large, and near-duplicates of a better image.

Run from the repository root: python dataset/filter_dataset_info.py --help
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dataset.options import add_threshold
from visual_search.common.errors import UserError, run_command
from visual_search.common.ranges import whole_number

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

REPORT_COLUMNS = ("file_name", "label", "reason", "duplicate_of", "distance")


MOST_ROWS, MOST_IN_A_ROW = 120, 8
"""Of the page of duplicates."""


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
    """The rows to keep, as text and in their order, and `REPORT_COLUMNS` of those left out.

    Args:
        threshold: most bits in which near-duplicates differ, 0..64.
        min_size: of the shorter side, pixels; 0 is no limit.
        max_size: of the longer side, likewise.

    Raises:
        UserError: naming file, column and line of what is wrong in the table.
    """
    import numpy as np
    import pandas as pd

    from visual_search.data.tables import image_names, read_common_table, training_rows

    table = read_common_table(file)
    trains = training_rows(table, file)
    report = pd.DataFrame("", index=range(len(table)), columns=list(REPORT_COLUMNS), dtype=object)
    report["file_name"], report["label"] = image_names(table).to_numpy(), table["label"].to_numpy()
    if min_size or max_size or dedup:
        sides = _sides(table, file)
        large, small = sides.max(axis=1), sides.min(axis=1)
        if max_size:
            report.loc[trains & (large > max_size), "reason"] = f"a side above {max_size} px"
        report.loc[trains & (small < min_size), "reason"] = f"a side below {min_size} px"
    if dedup:
        rows = np.flatnonzero(trains & (report["reason"] == "").to_numpy())
        pixels = sides[rows].prod(axis=1)
        _mark_duplicates(report, table, file, rows, pixels, threshold)
    stays = (report["reason"] == "").to_numpy()
    return table[stays], report[~stays]


def _sides(table: pd.DataFrame, file: Path) -> np.ndarray:
    """`(rows, 2)`, int64: width and height in pixels."""
    import numpy as np

    from visual_search.data.schema import integers

    for column in ("width", "height"):
        if column not in table.columns:
            raise UserError(f"{file} has no column {column!r}: generate_dataset_info.py writes it")
    return np.stack([integers(table, column, file) for column in ("width", "height")], axis=1)


def _mark_duplicates(
    report: pd.DataFrame,
    table: pd.DataFrame,
    file: Path,
    rows: np.ndarray,
    pixels: np.ndarray,
    threshold: int,
) -> None:
    """Write into the report which of `rows` are near-duplicates of which image, and how near.

    Rows of the same file (several boxes in it) are one image: they stay or go together.
    """
    import numpy as np
    import pandas as pd

    from visual_search.data.duplicates import find_removals, hashes_of_table

    names, labels = report["file_name"].to_numpy()[rows], report["label"].iloc[rows]
    groups = pd.factorize(labels)[0]
    image_of_row = pd.factorize(pd.MultiIndex.from_arrays([names, groups]))[0]
    first = np.unique(image_of_row, return_index=True)[1]
    images = rows[first]
    paths = [file.parent / name for name in names[first]]
    hashes, unreadable = hashes_of_table(table.iloc[images], file, paths)
    for image, reason in unreadable.items():
        report.loc[rows[image_of_row == image], "reason"] = f"unreadable: {reason}"
    readable = np.setdiff1d(np.arange(len(images)), list(unreadable))
    removed, duplicate_of, distance = find_removals(
        hashes[readable],
        pixels[first][readable],
        groups[first][readable],
        threshold,
        progress=True,
    )
    place = np.full(len(images), -1)
    place[readable[removed]] = np.arange(len(removed))
    of_row = place[image_of_row]
    gone, of_row = rows[of_row >= 0], of_row[of_row >= 0]
    report.loc[gone, "reason"] = "near-duplicate"
    report.loc[gone, "duplicate_of"] = names[first][readable][duplicate_of[of_row]]
    report.loc[gone, "distance"] = distance[of_row]


def draw_groups(file: Path, report: pd.DataFrame, target: Path) -> tuple[int, int]:
    """Draw each kept image beside its duplicates; returns the rows drawn, and all there are."""
    from visual_search.common.page import Section, Tile, TileRow, write_page
    from visual_search.data.images import ImageItem
    from visual_search.evaluation.report import thumbnails

    def tile(name: str, kind: Literal["right", "image"]) -> Tile:
        return Tile(ImageItem(file.parent / name), name, kind)

    groups = report[report["duplicate_of"] != ""].sort_values(
        "distance", ascending=False, kind="stable"
    )
    rows = []
    for kept, members in groups.groupby("duplicate_of", sort=False):
        shown = members.head(MOST_IN_A_ROW)
        tiles = [tile(str(kept), "right"), *(tile(name, "image") for name in shown["file_name"])]
        bits = ", ".join(map(str, shown["distance"]))
        rows.append(TileRow(os.path.basename(str(kept)), f"{bits} bits", tiles))
    target.unlink(missing_ok=True)
    if rows:
        notes = ["Green: it stays. Beside it what is left out, and in how many bits it differs."]
        section = Section(notes=notes, rows=rows[:MOST_ROWS])
        write_page(target, f"Near-duplicates in {file.name}", [section], thumbnails)
    return min(len(rows), MOST_ROWS), len(rows)


def main() -> None:
    """Write the tables and say what was left out."""
    arguments = vars(parse_arguments())
    file: Path = arguments.pop("dataset_info")
    sheet = arguments.pop("contact_sheet")
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
        target = file.with_name(f"{file.stem}_duplicates.html")
        drawn, groups = draw_groups(file, removed, target)
        print(f"{target}: {drawn} of {groups} groups drawn" if groups else "no group to draw")
    print(f"next: python dataset/get_kfold_split.py --dataset_info {filtered}")


if __name__ == "__main__":
    run_command(main)
