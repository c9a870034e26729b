"""Reading csv tables: what is missing or wrong is said with file, column and line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from visual_search.errors import UserError
from visual_search.images import Box, ImageItem
from visual_search.table_rules import BOX_COLUMNS, faults

# Everything is read as text: what is a number is decided where it is used.
AS_TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}


def read_table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Read a csv file that must have `columns`, every cell as text; other columns are kept.

    Raises:
        UserError: naming the file, and the column where one is missing.
    """
    table = _read(path, None)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, table.columns))}"
        )
    return table


def read_header(path: Path) -> list[str]:
    """The names of the columns of a csv file.

    Raises:
        UserError: as :func:`read_table`.
    """
    return list(_read(path, 0).columns)


def _read(path: Path, rows: int | None) -> pd.DataFrame:
    if not path.parent.is_dir():
        raise UserError(
            f"the folder {path.parent} does not exist; {path.name} was looked for there"
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        return pd.read_csv(path, nrows=rows, **AS_TEXT)
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; its first line must name its columns") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable csv file: {error}") from error


def line_numbers(path: Path) -> Iterator[int]:
    """The line on which each row of a csv file begins; the header is not among the rows.

    Cells may have line breaks, and empty lines are no rows: a row's line is not its number.
    """
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle)
        before, header = 0, True
        for cells in reader:
            if cells and not header:
                yield before + 1
            header = header and not cells
            before = reader.line_num


def line_of_row(path: Path, row: int) -> int:
    """The line on which a row of a csv file begins; row 0 is the first behind the header."""
    return next(islice(line_numbers(path), row, None))


def refuse_faults(table: pd.DataFrame, path: Path) -> None:
    """Refuse a table in which a cell breaks a rule.

    Raises:
        UserError: with file, line, column and cell of the first row of the first faulty column,
            and what to write instead.
    """
    for fault in faults(table):
        row = int(fault.rows[0])
        cell = table[fault.column].iloc[row]
        more = f" (and {len(fault.rows) - 1} more lines)" if len(fault.rows) > 1 else ""
        line = line_of_row(path, row)
        raise UserError(f"{path} line {line}: {fault.column} is {cell!r}; {fault.expected}{more}")


def integers(table: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    """A column as int64.

    Raises:
        UserError: with file, column and line of the first value that is no whole number.
    """
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values) | (values != np.round(values)))
    if len(wrong):
        row = int(wrong[0])
        cell = table[column].iloc[row]
        more = f" (and {len(wrong) - 1} more lines)" if len(wrong) > 1 else ""
        line = line_of_row(path, row)
        raise UserError(f"{path} line {line}: {column} is {cell!r}, not a whole number{more}")
    return values.astype(np.int64)


def read_gallery(path: Path) -> pd.DataFrame:
    """The challenge's `gallery.csv`: `seller_img_id, img_path` and, where known, `product_id`.

    Raises:
        UserError: naming file and column, also when it lists no photo.
    """
    table = read_table(path, ["seller_img_id", "img_path"])
    if table.empty:
        raise UserError(f"{path} lists no gallery photo: there is nothing to rank")
    return table


def read_queries(path: Path) -> pd.DataFrame:
    """The challenge's `queries.csv`: `user_img_id, img_path`, the box, maybe `product_id`.

    Raises:
        UserError: naming file and column, also when it lists no query.
    """
    table = read_table(path, ["user_img_id", "img_path", *BOX_COLUMNS])
    if table.empty:
        raise UserError(f"{path} lists no query")
    return table


def image_items(table: pd.DataFrame, folder: Path) -> list[ImageItem]:
    """The photos of a challenge table, with their boxes if it has box columns.

    A box that is not four whole numbers stays in the item as an empty one, which the reader of
    the image reports and replaces by the whole image: one bad line must not lose a submission.
    """
    paths = [folder / name for name in table["img_path"]]
    if not set(BOX_COLUMNS) <= set(table.columns):
        return [ImageItem(path) for path in paths]
    numbers = np.stack(
        [pd.to_numeric(table[column], errors="coerce").to_numpy(float) for column in BOX_COLUMNS],
        axis=1,
    )
    numbers = np.where(np.isfinite(numbers).all(axis=1, keepdims=True), numbers, 0).round()
    # Far outside any image, yet safe to convert.
    boxes = np.clip(numbers, -(2**31), 2**31).astype(np.int64).tolist()
    return [ImageItem(path, _as_box(box)) for path, box in zip(paths, boxes, strict=True)]


def _as_box(values: list[int]) -> Box:
    x, y, w, h = values
    return x, y, w, h


def check_boxes(table: pd.DataFrame, path: Path) -> None:
    """Refuse boxes that cannot be meant: not whole numbers, or without any area.

    Raises:
        UserError: with file and line of the first such box.
    """
    for column in BOX_COLUMNS:
        values = integers(table, column, path)
        if column in BOX_COLUMNS[2:] and (values <= 0).any():
            row = int(np.flatnonzero(values <= 0)[0])
            line = line_of_row(path, row)
            raise UserError(f"{path} line {line}: {column} is {values[row]}, it must be above 0")
