"""What each column of a table must be, which cells break that, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.data.values import NO_VALUE, fault_of

PATH_COLUMNS = ("file_name", "image_path", "img_path")
BOX_COLUMNS = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
STATUSES = ("", "train", "query", "gallery", "test")
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")
ALWAYS_TRAIN, ALWAYS_TEST = -1, -2
ID_COLUMNS = ("label", "product_id")


def check_table(table: pd.DataFrame, path: Path, ids: Collection[str] = ID_COLUMNS) -> None:
    """Refuse a table in which a cell breaks a rule.

    Args:
        table: as read from `path`.
        path: for the errors.
        ids: which of the columns have ids.

    Raises:
        UserError: with file, line, column and cell of the first row of the first faulty column,
            and what to write instead.
    """
    for error in schema_errors(table, ids):
        _refuse(table, path, *error)


def integers(table: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    """A column as int64.

    Raises:
        UserError: with file, column and line of the first value that is no whole number.
    """
    values = numbers_of(table[column])
    wrong = np.flatnonzero(np.isnan(values))
    if len(wrong):
        _refuse(table, path, column, wrong, "write a whole number")
    # Once more: as float64 the last digits of long ids are lost.
    return pd.to_numeric(table[column]).to_numpy().astype(np.int64)


def _refuse(
    table: pd.DataFrame, path: Path, column: str, rows: np.ndarray, expected: str
) -> NoReturn:
    cell, line = table[column].iloc[rows[0]], table.index[rows[0]]
    more = f" (and {len(rows) - 1} more lines)" if len(rows) > 1 else ""
    raise UserError(f"{path} line {line}: {column} is {cell!r}; {expected}{more}")


class SchemaError(NamedTuple):
    """What is wrong in one column."""

    column: str
    rows: np.ndarray
    """Positions of the rows, int64, ascending; never empty."""
    expected: str
    """What to write instead."""


def schema_errors(table: pd.DataFrame, ids: Collection[str] = ID_COLUMNS) -> Iterator[SchemaError]:
    """Everything that is wrong in the cells of a table that was read as text.

    Columns without a rule are passed over. Whether the images exist is not asked here.
    """
    for column in table.columns:
        if column in ids:
            yield from _id_errors(table[column])
        elif column in RULES:
            expected, wrong = RULES[column]
            yield from _error(column, wrong(table[column]), expected)
    if "bbox" in table.columns:
        yield from _box_errors(table, "bbox", *boxes_of(table["bbox"]))
    elif set(BOX_COLUMNS) <= set(table.columns):
        numbers = np.stack([numbers_of(table[column]) for column in BOX_COLUMNS], axis=1)
        whole = np.isfinite(numbers).all(axis=1)
        yield from _box_errors(table, BOX_COLUMNS[0], np.where(whole[:, None], numbers, 1), whole)


def boxes_of(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The boxes `x,y,w,h` of a column `bbox`.

    Returns:
        `(rows, 4)`, float64, rounded, NaN where the cell is no box; and `(rows,)`, bool: whether
        there is something in the cell.
    """
    cells = cells.str.strip(" []()")
    given = (cells != "").to_numpy(dtype=bool)
    boxes = np.full((len(cells), 4), np.nan)
    if given.any():
        parts = cells[given].str.split(",", expand=True).reindex(columns=range(5))
        numbers = parts.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        # The fifth column has something in it only where a cell has too many numbers.
        wrong = ~np.isfinite(numbers[:, :4]).all(axis=1) | parts[4].notna().to_numpy()
        boxes[given] = np.where(wrong[:, None], np.nan, numbers[:, :4].round())
    return boxes, given


def _box_errors(
    table: pd.DataFrame, column: str, boxes: np.ndarray, given: np.ndarray
) -> Iterator[SchemaError]:
    readable = np.isfinite(boxes).all(axis=1)
    yield from _error(column, given & ~readable, "write four numbers x,y,w,h")
    flat = readable & given & (boxes[:, 2:] <= 0).any(axis=1)
    yield from _error(column, flat, "width and height must be above 0 (x,y,w,h)")
    if {"width", "height"} <= set(table.columns):
        size = np.stack([numbers_of(table["width"]), numbers_of(table["height"])], axis=1)
        ends = boxes[:, :2] + boxes[:, 2:]
        # NaN, where a size or a box is unreadable, compares as inside: it is told already.
        outside = (boxes[:, :2] < 0).any(axis=1) | (ends > size).any(axis=1)
        expected = "it must lie within the width and height of the image (x,y,w,h)"
        yield from _error(column, outside & given & readable & ~flat, expected)


def numbers_of(cells: pd.Series) -> np.ndarray:
    """The cells as float64, NaN where one is no whole number."""
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64)
    return np.where(np.isfinite(numbers) & (numbers == np.round(numbers)), numbers, np.nan)


def _error(column: str, wrong: pd.Series | np.ndarray, expected: str) -> Iterator[SchemaError]:
    rows = np.flatnonzero(wrong)
    if len(rows):
        yield SchemaError(column, rows, expected)


def _id_errors(cells: pd.Series) -> Iterator[SchemaError]:
    faults = cells.map({cell: fault_of(cell) for cell in cells.unique()})
    for expected in faults.unique():
        if expected:
            yield from _error(str(cells.name), faults == expected, expected)


def is_blank(cells: pd.Series) -> pd.Series:
    """Which cells say nothing: empty, `nan`, `null` and the like."""
    return cells.str.strip().isin(NO_VALUE)


def _below(least: int) -> Callable[[pd.Series], np.ndarray]:
    # NaN, which is no whole number, is not at least anything.
    return lambda cells: ~(numbers_of(cells) >= least)


# What each column must be, and which of its cells are wrong.
RULES: dict[str, tuple[str, Callable[[pd.Series], pd.Series | np.ndarray]]] = {
    **dict.fromkeys(PATH_COLUMNS, ("it must not be empty", is_blank)),
    "is_test": (
        "write 0 or 1",
        lambda cells: ~cells.str.strip().str.lower().isin(YES + NO),
    ),
    "evaluation_status": (
        "write train, query, gallery or test",
        lambda cells: ~cells.str.strip().str.lower().isin(STATUSES),
    ),
    "fold": (
        "write a whole number: -1 (always train), -2 (never), or a fold from 0 on",
        _below(ALWAYS_TEST),
    ),
    **{
        column: ("write pixels: a whole number above 0", _below(1))
        for column in ("width", "height", "bbox_w", "bbox_h")
    },
    **{
        column: ("write a whole number", lambda cells: np.isnan(numbers_of(cells)))
        for column in ("bbox_x", "bbox_y", "seller_img_id", "user_img_id")
    },
    "hash": (
        "write 16 hexadecimal digits, or nothing",
        lambda cells: ~cells.str.fullmatch(r"(?:[0-9a-fA-F]{16})?"),
    ),
}
