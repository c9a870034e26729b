"""Reading csv tables: what is missing or wrong is said with file, line, column and what to write.

The tables are told apart by their column of paths (:data:`PATH_COLUMNS`): `dataset_info.csv` and
`folds.csv`, Amazon pairs, and the challenge's `gallery.csv` and `queries.csv`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.data.images import Box, ImageItem

PATH_COLUMNS = ("file_name", "image_path", "img_path")
LABELLED_PATH_COLUMNS = PATH_COLUMNS[:2]
"""Of tables with a column `label`: `file_name` (dataset_info.csv, folds.csv), `image_path`."""
BOX_COLUMNS = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
STATUSES = ("", "train", "query", "gallery", "test")
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")
ALWAYS_TRAIN, ALWAYS_TEST = -1, -2
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


def check_table(table: pd.DataFrame, path: Path) -> None:
    """Refuse a table in which a cell breaks a rule.

    Raises:
        UserError: with file, line, column and cell of the first row of the first faulty column,
            and what to write instead.
    """
    for error in schema_errors(table):
        _refuse(table, path, *error)


def check_boxes(table: pd.DataFrame, path: Path) -> None:
    """Refuse boxes that cannot be meant: not whole numbers, or without any area.

    Raises:
        UserError: as :func:`check_table`.
    """
    check_table(table[list(BOX_COLUMNS)], path)


def integers(table: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    """A column as int64.

    Raises:
        UserError: with file, column and line of the first value that is no whole number.
    """
    values = numbers_of(table[column])
    wrong = np.flatnonzero(np.isnan(values))
    if len(wrong):
        _refuse(table, path, column, wrong, "write a whole number")
    return values.astype(np.int64)


def _refuse(
    table: pd.DataFrame, path: Path, column: str, rows: np.ndarray, expected: str
) -> NoReturn:
    cell, line = table[column].iloc[rows[0]], line_of_row(path, int(rows[0]))
    more = f" (and {len(rows) - 1} more lines)" if len(rows) > 1 else ""
    raise UserError(f"{path} line {line}: {column} is {cell!r}; {expected}{more}")


def read_gallery(path: Path) -> pd.DataFrame:
    """The challenge's `gallery.csv`: `seller_img_id, img_path` and, where known, `product_id`.

    Raises:
        UserError: naming file and column, also when it lists no image.
    """
    table = read_table(path, ["seller_img_id", "img_path"])
    if table.empty:
        raise UserError(f"{path} lists no gallery image: there is nothing to rank")
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
    """The images of a challenge table, with their boxes if it has box columns.

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


def read_common_table(file: Path) -> pd.DataFrame:
    """The table with every cell as it stands in the file, as text.

    Raises:
        UserError: naming file and column or line: no column `label`, not exactly one of the
            path columns `image_path` and `file_name`, and the first cell that breaks a rule of
            :data:`RULES`.
    """
    table = read_table(file, ["label"])
    paths = [column for column in LABELLED_PATH_COLUMNS if column in table.columns]
    if len(paths) != 1:
        raise UserError(
            f"{file} needs the images' paths in one of the columns 'image_path' (Amazon pairs) "
            f"and 'file_name' (dataset_info.csv, folds.csv); it has "
            f"{', '.join(map(repr, table.columns))}"
        )
    check_table(table, file)
    return table


def image_names(table: pd.DataFrame) -> pd.Series:
    """The paths of the images, from whichever column has them."""
    return table[next(column for column in LABELLED_PATH_COLUMNS if column in table.columns)]


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
    trains &= np.isin(statuses(table), ("", "train"))
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


def statuses(table: pd.DataFrame) -> np.ndarray:
    """`evaluation_status` of each row, one of `STATUSES`; empty where there is no such column."""
    if "evaluation_status" not in table.columns:
        return np.full(len(table), "", dtype=object)
    return table["evaluation_status"].str.strip().str.lower().to_numpy(dtype=object)


def boxes(table: pd.DataFrame) -> np.ndarray | None:
    """`(rows, 4)`, int64: x, y, width, height, rounded; zeros where the cell is empty.

    None where the table has no column `bbox`.
    """
    if "bbox" not in table.columns:
        return None
    found, given = boxes_of(table["bbox"])
    return np.where(given[:, None], found, 0).astype(np.int64)


class SchemaError(NamedTuple):
    """What is wrong in one column."""

    column: str
    rows: np.ndarray
    """Positions of the rows, int64, ascending; never empty."""
    expected: str
    """What to write instead."""


def schema_errors(table: pd.DataFrame) -> Iterator[SchemaError]:
    """Everything that is wrong in the cells of a table that was read as text.

    Columns without a rule are passed over. Whether the images exist is not asked here.
    """
    for column in table.columns:
        if column in RULES:
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


def _empty(cells: pd.Series) -> pd.Series:
    return cells.str.strip() == ""


def _below(least: int) -> Callable[[pd.Series], np.ndarray]:
    # NaN, which is no whole number, is not at least anything.
    return lambda cells: ~(numbers_of(cells) >= least)


# What each column must be, and which of its cells are wrong.
RULES: dict[str, tuple[str, Callable[[pd.Series], pd.Series | np.ndarray]]] = {
    **dict.fromkeys((*PATH_COLUMNS, "label"), ("it must not be empty", _empty)),
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
        for column in ("bbox_x", "bbox_y", "seller_img_id", "user_img_id", "product_id")
    },
    "hash": (
        "write 16 hexadecimal digits, or nothing",
        lambda cells: ~cells.str.fullmatch(r"(?:[0-9a-fA-F]{16})?"),
    ),
}
