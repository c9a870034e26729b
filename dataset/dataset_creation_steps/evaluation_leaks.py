"""Photos that also stand in an evaluation set: what is judged must not be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from visual_search.errors import UserError
from visual_search.leak_record import Side, record
from visual_search.leaks import find_leaks, leak_table, list_photos

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
                "the photos that judge there, name them, or name none to look for no leaks "
                "(--evaluation alone; evaluation: [] in a config)"
            )
        tables += found
    return tables


def leaked_photos(
    table: Path, root: Path, tests: Sequence[Path], distance: int
) -> tuple[pd.DataFrame, set[str]]:
    """The photos of a training table that are, or look like, a photo of an evaluation table.

    Args:
        table: csv file with `image_path`.
        root: folder of its photos.
        tests: csv files; see :func:`visual_search.leaks.list_photos`.
        distance: bits in which the hashes of near-duplicates differ at most, 0..64.

    Returns:
        All pairs; and the paths, relative to `root`, of the training photos in them.
    """
    found = []
    if tests:
        train = list_photos(table, root, trains=True)
        for test in tests:
            found += find_leaks(train, list_photos(test, None, trains=False), distance)
    paths = {str(Path(leak.train_photo).relative_to(root)) for leak in found}
    return leak_table(found), paths


def note_checked(tables: Sequence[Path], root: Path, tests: Sequence[Path], distance: int) -> None:
    """Record beside each training table that it holds no photo of the evaluation tables.

    Args:
        tables: that were written.
        root: folder of their photos.
        tests: that they were compared with.
        distance: bits; see :func:`leaked_photos`.
    """
    facts = {"threshold": distance, "pairs": 0, "evaluation_photos": 0}
    for table in tables:
        for test in tests:
            record(Side(table, root), Side(test), facts)
