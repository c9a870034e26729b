"""Clean a table of photos: too small, too large, and near-duplicates of a better photo.

Run from the repository root: python dataset/filter_dataset_info.py --help
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from visual_search.common.errors import UserError, exit_with_sentence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

REPORT_COLUMNS = ("file_name", "label", "reason", "duplicate_of", "distance")
NEAR_DUPLICATE = "near-duplicate"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="filter_dataset_info.py",
        description="Write <name>_filtered.csv and, of what was left out, <name>_removed.csv "
        "(what, why, duplicate of which, distance) beside a dataset_info.csv. Only rows that "
        "train are ever left out. Of near-duplicates the largest photo stays, of equally large "
        "ones the first; every photo left out has a kept one within the threshold.",
    )
    parser.add_argument("--dataset_info", type=Path, required=True, help="the table to clean")
    parser.add_argument(
        "--dedup", action="store_true", help="leave out near-duplicates within a class"
    )
    parser.add_argument(
        "--threshold",
        type=int,
        default=10,
        help="most bits, of 64, in which the hashes of near-duplicates differ (default: 10)",
    )
    parser.add_argument(
        "--across-classes",
        action="store_true",
        help="a photo of one class can be a duplicate of one of another",
    )
    parser.add_argument(
        "--min_size", type=int, default=0, help="leave out photos with a side below, in pixels"
    )
    parser.add_argument(
        "--max_size", type=int, default=0, help="leave out photos with a side above, in pixels"
    )
    parser.add_argument(
        "--contact-sheet",
        action="store_true",
        help="draw the groups as <name>_duplicates.jpg, the least similar first",
    )
    return parser.parse_args(arguments)


class Removal(NamedTuple):
    """One row of the table that is left out; the fields are the report's columns."""

    file_name: str
    label: str
    reason: str
    duplicate_of: str = ""
    distance: int | str = ""


def filter_table(
    file: Path,
    *,
    dedup: bool = False,
    threshold: int = 10,
    across_classes: bool = False,
    min_size: int = 0,
    max_size: int = 0,
) -> tuple[pd.DataFrame, list[Removal]]:
    """The rows to keep, as text and in their order, and what is left out.

    Args:
        file: the table, with the columns of `dataset_info.csv`.
        dedup: leave out near-duplicates by :func:`visual_search.data.duplicates.find_removals`.
        threshold: most bits in which they differ, 0..64.
        across_classes: compare all photos, not those of a class with each other.
        min_size: of the shorter side, pixels; 0 is no limit.
        max_size: of the longer side, pixels; 0 is no limit.

    Raises:
        UserError: naming file, column and line of what is wrong in the table.
    """
    import numpy as np

    from visual_search.data.tables import read_common_table, training_rows

    table = read_common_table(file)
    trains = training_rows(table, file)
    reasons = np.full(len(table), "", dtype=object)
    if min_size or max_size or dedup:
        sides = _sides(table, file)
        if min_size:
            _note(reasons, trains & (sides.min(axis=1) < min_size), f"a side below {min_size} px")
        if max_size:
            _note(reasons, trains & (sides.max(axis=1) > max_size), f"a side above {max_size} px")
    duplicate_of: dict[int, tuple[int, int]] = {}
    if dedup:
        rows = np.flatnonzero(trains & (reasons == ""))
        pixels = sides[rows].prod(axis=1)
        duplicate_of = _duplicates(table, file, rows, pixels, reasons, threshold, across_classes)
    return table[reasons == ""], _removals(table, reasons, duplicate_of)


def _sides(table: pd.DataFrame, file: Path) -> np.ndarray:
    """`(rows, 2)`, int64: width and height in pixels."""
    import numpy as np

    from visual_search.data.tables import integers

    for column in ("width", "height"):
        if column not in table.columns:
            raise UserError(f"{file} has no column {column!r}: generate_dataset_info.py writes it")
    return np.stack([integers(table, column, file) for column in ("width", "height")], axis=1)


def _note(reasons: np.ndarray, rows: np.ndarray, reason: str) -> None:
    reasons[rows & (reasons == "")] = reason


def _duplicates(
    table: pd.DataFrame,
    file: Path,
    rows: np.ndarray,
    pixels: np.ndarray,
    reasons: np.ndarray,
    threshold: int,
    across_classes: bool,
) -> dict[int, tuple[int, int]]:
    """Of each row that is a near-duplicate: the row kept in its place, and the distance.

    Rows of the same file (several boxes in it) are one photo: they stay or go together.
    """
    import numpy as np
    import pandas as pd

    from visual_search.data.duplicates import find_removals, hashes_of_table
    from visual_search.data.tables import image_names

    names = image_names(table).iloc[rows]
    labels = pd.factorize(table["label"].iloc[rows])[0]
    groups = np.zeros(len(rows), dtype=np.int64) if across_classes else labels
    keys = pd.DataFrame({"name": names.to_numpy(), "group": groups})
    photo_of_row = pd.factorize(pd.MultiIndex.from_frame(keys))[0]
    _, first = np.unique(photo_of_row, return_index=True)
    photos = rows[first]
    paths = [file.parent / name for name in names.iloc[first]]
    found = hashes_of_table(table.iloc[photos], file, paths)
    for photo, reason in found.unreadable.items():
        reasons[rows[photo_of_row == photo]] = f"unreadable: {reason}"
    readable = np.setdiff1d(np.arange(len(photos)), list(found.unreadable))
    removals = find_removals(
        found.values[readable],
        pixels[first][readable],
        groups[first][readable],
        threshold,
        progress=True,
    )
    answer: dict[int, tuple[int, int]] = {}
    rows_of_photo = pd.Series(rows).groupby(photo_of_row).indices
    for gone, kept, distance in zip(
        readable[removals.removed].tolist(),
        readable[removals.duplicate_of].tolist(),
        removals.distance.tolist(),
        strict=True,
    ):
        for place in rows_of_photo[gone]:
            answer[int(rows[place])] = (int(photos[kept]), distance)
    reasons[list(answer)] = NEAR_DUPLICATE
    return answer


def _removals(
    table: pd.DataFrame, reasons: np.ndarray, duplicate_of: dict[int, tuple[int, int]]
) -> list[Removal]:
    from visual_search.data.tables import image_names

    names, labels = image_names(table).to_numpy(), table["label"].to_numpy()
    removals = []
    for row in (reasons != "").nonzero()[0].tolist():
        kept, distance = duplicate_of.get(row, (None, ""))
        of = "" if kept is None else names[kept]
        removals.append(Removal(names[row], labels[row], reasons[row], of, distance))
    return removals


def draw_groups(file: Path, removals: list[Removal], target: Path) -> tuple[int, int]:
    """Draw each kept photo beside its duplicates; returns the rows drawn, and all there are."""
    from visual_search.data.contact_sheet import Cell, write_contact_sheets

    groups: dict[str, list[Removal]] = defaultdict(list)
    for removal in removals:
        if removal.duplicate_of:
            groups[removal.duplicate_of].append(removal)
    rows = []
    for kept, members in groups.items():
        members.sort(key=lambda member: -int(member.distance))
        cells = [Cell(file.parent / kept, f"kept\n{os.path.basename(kept)}", "green")]
        for member in members:
            caption = f"{member.distance} bits\n{os.path.basename(member.file_name)}"
            cells.append(Cell(file.parent / member.file_name, caption, "red"))
        rows.append((-int(members[0].distance), cells))
    rows.sort(key=lambda row: row[0])
    return write_contact_sheets(target, [cells for _, cells in rows]), len(rows)


def main() -> None:
    """Write the tables and say what was left out."""
    arguments = parse_arguments()
    if not 0 <= arguments.threshold <= 64:
        raise UserError(f"--threshold is a number of bits, 0..64, not {arguments.threshold}")
    file: Path = arguments.dataset_info
    table, removals = filter_table(
        file,
        dedup=arguments.dedup,
        threshold=arguments.threshold,
        across_classes=arguments.across_classes,
        min_size=arguments.min_size,
        max_size=arguments.max_size,
    )
    import pandas as pd

    from visual_search.common.files import written_atomically

    filtered = file.with_name(f"{file.stem}_filtered.csv")
    report = file.with_name(f"{file.stem}_removed.csv")
    for path, rows in (
        (filtered, table),
        (report, pd.DataFrame(removals, columns=list(REPORT_COLUMNS))),
    ):
        with written_atomically(path) as temporary:
            rows.to_csv(temporary, index=False, lineterminator="\n")
    print(f"{filtered}: {len(table)} rows stay; {report}: {len(removals)} left out")
    for reason, count in Counter(removal.reason for removal in removals).most_common(10):
        print(f"  {count} {reason}")
    if arguments.contact_sheet:
        target = file.with_name(f"{file.stem}_duplicates.jpg")
        drawn, groups = draw_groups(file, removals, target)
        print(f"{target}: {drawn} of {groups} groups drawn" if groups else "no group to draw")
    print(f"next: python dataset/get_kfold_split.py --dataset_info {filtered}")


if __name__ == "__main__":
    exit_with_sentence(main)
