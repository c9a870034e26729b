"""Reading the common table of photos (`dataset_info.csv`, `folds.csv`, Amazon pairs) as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.errors import UserError
from visual_search.tables import integers, read_table

PATH_COLUMNS = ("image_path", "file_name")
STATUSES = ("", "train", "query", "gallery", "test")
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")
ALWAYS_TRAIN, ALWAYS_TEST = -1, -2


def read_common_table(file: Path) -> pd.DataFrame:
    """The table with every cell as it stands in the file, as text.

    Raises:
        UserError: naming file and column or line: no column `label`, not exactly one of the
            path columns `image_path` and `file_name`, an empty path or label.
    """
    table = read_table(file, ["label"])
    paths = [column for column in PATH_COLUMNS if column in table.columns]
    if len(paths) != 1:
        raise UserError(
            f"{file} needs the photos' paths in one of the columns 'image_path' (Amazon pairs) "
            f"and 'file_name' (dataset_info.csv, folds.csv); it has "
            f"{', '.join(map(repr, table.columns))}"
        )
    for column in (paths[0], "label"):
        refuse(file, table[column], table[column].str.strip() == "", "it must not be empty")
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
        UserError: with file and line for a wrong `is_test`, `evaluation_status` or `fold`, and
            for a fold to hold out that the table does not have.
    """
    trains = np.ones(len(table), dtype=bool)
    if "is_test" in table.columns:
        answers = table["is_test"].str.strip().str.lower()
        refuse(file, table["is_test"], ~answers.isin(YES + NO), "write 0 or 1")
        trains &= answers.isin(NO).to_numpy()
    if "evaluation_status" in table.columns:
        trains &= np.isin(statuses(table, file), ("", "train"))
    if "fold" in table.columns:
        folds = integers(table, "fold", file)
        expected = "write -1 (always train), -2 (never), or a fold from 0 on"
        refuse(file, table["fold"], folds < ALWAYS_TEST, expected)
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
    """`evaluation_status` of each row, one of `STATUSES`; empty where there is no such column.

    Raises:
        UserError: with file and line of a status that is none.
    """
    if "evaluation_status" not in table.columns:
        return np.full(len(table), "", dtype=object)
    status = table["evaluation_status"].str.strip().str.lower()
    expected = "write train, query, gallery or test"
    refuse(file, table["evaluation_status"], ~status.isin(STATUSES), expected)
    return status.to_numpy(dtype=object)


def boxes(table: pd.DataFrame, file: Path) -> np.ndarray | None:
    """`(rows, 4)`, int64: x, y, width, height, rounded; zeros where the cell is empty.

    None where the table has no column `bbox`.

    Raises:
        UserError: with file and line of a box that is not four numbers or has no area.
    """
    if "bbox" not in table.columns:
        return None
    cells = table["bbox"].str.strip(" []()")
    given = (cells != "").to_numpy()
    answer = np.zeros((len(table), 4), dtype=np.int64)
    if not given.any():
        return answer
    parts = cells[given].str.split(",", expand=True).reindex(columns=range(5))
    numbers = parts.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.zeros(len(table), dtype=bool)
    # The fifth column has something in it only where a cell has too many numbers.
    wrong[given] = ~np.isfinite(numbers[:, :4]).all(axis=1) | parts[4].notna().to_numpy()
    refuse(file, table["bbox"], wrong, "write four numbers x,y,w,h")
    answer[given] = numbers[:, :4].round().astype(np.int64)
    flat = given & (answer[:, 2:] <= 0).any(axis=1)
    refuse(file, table["bbox"], flat, "width and height must be above 0 (x,y,w,h)")
    return answer


def refuse(file: Path, column: pd.Series, wrong: pd.Series | np.ndarray, expected: str) -> None:
    """Raise for the first of the `wrong` rows, if there is one.

    Raises:
        UserError: with file, line, column and cell, and what was `expected`.
    """
    rows = np.flatnonzero(wrong)
    if len(rows):
        # Line 1 is the header, so row 0 of the table stands on line 2.
        raise UserError(
            f"{file} line {rows[0] + 2}: {column.name} is {column.iloc[rows[0]]!r}; {expected}"
            + (f" (and {len(rows) - 1} more lines)" if len(rows) > 1 else "")
        )
