"""Reading the common table of photos (`dataset_info.csv`, `folds.csv`, Amazon pairs) as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.errors import UserError
from visual_search.table_rules import (
    ALWAYS_TEST,
    NO,
    boxes_of,
    numbers_of,
)
from visual_search.tables import read_table, refuse_faults

PATH_COLUMNS = ("image_path", "file_name")
ALWAYS_TRAIN = -1


def read_common_table(file: Path) -> pd.DataFrame:
    """The table with every cell as it stands in the file, as text.

    Raises:
        UserError: naming file and column or line: no column `label`, not exactly one of the
            path columns `image_path` and `file_name`, and the first cell that breaks a rule of
            :mod:`visual_search.table_rules`.
    """
    table = read_table(file, ["label"])
    paths = [column for column in PATH_COLUMNS if column in table.columns]
    if len(paths) != 1:
        raise UserError(
            f"{file} needs the photos' paths in one of the columns 'image_path' (Amazon pairs) "
            f"and 'file_name' (dataset_info.csv, folds.csv); it has "
            f"{', '.join(map(repr, table.columns))}"
        )
    refuse_faults(table, file)
    return table


def photo_names(table: pd.DataFrame) -> pd.Series:
    """The paths of the photos, from whichever column has them."""
    return table[next(column for column in PATH_COLUMNS if column in table.columns)]


def training_rows(table: pd.DataFrame, file: Path, held_out: int = -1) -> np.ndarray:
    """Which rows train, `(rows,)`, bool: neither test rows nor those of the fold `held_out`.

    Args:
        table: as :func:`read_common_table` gives it.
        file: where it is from, for the errors.
        held_out: a fold; -1 holds none out.

    Raises:
        UserError: for a fold to hold out that the table does not have.
    """
    trains = np.ones(len(table), dtype=bool)
    if "is_test" in table.columns:
        trains &= table["is_test"].str.strip().str.lower().isin(NO).to_numpy()
    trains &= np.isin(statuses(table, file), ("", "train"))
    if "fold" in table.columns:
        folds = numbers_of(table["fold"]).astype(np.int64)
        if held_out >= 0 and not (folds == held_out).any():
            known_folds = ", ".join(map(str, np.unique(folds[folds >= 0]))) or "none"
            raise UserError(f"{file} has no fold {held_out} to hold out; its folds: {known_folds}")
        trains &= folds != ALWAYS_TEST
        if held_out >= 0:
            trains &= folds != held_out
    elif held_out >= 0:
        raise UserError(f"{file} has no column 'fold', so fold {held_out} cannot be held out of it")
    return trains


def statuses(table: pd.DataFrame, file: Path) -> np.ndarray:
    """`evaluation_status` of each row, one of `STATUSES`; empty where there is no such column."""
    if "evaluation_status" not in table.columns:
        return np.full(len(table), "", dtype=object)
    return table["evaluation_status"].str.strip().str.lower().to_numpy(dtype=object)


def boxes(table: pd.DataFrame, file: Path) -> np.ndarray | None:
    """`(rows, 4)`, int64: x, y, width, height, rounded; zeros where the cell is empty.

    None where the table has no column `bbox`.
    """
    if "bbox" not in table.columns:
        return None
    found, given = boxes_of(table["bbox"])
    return np.where(given[:, None], found, 0).astype(np.int64)
