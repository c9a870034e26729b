"""Reading csv tables: what is missing or wrong is said with file, line, column and what to write.

The tables are told apart by their column of paths (:data:`PATH_COLUMNS`): `dataset_info.csv` and
`folds.csv`, Amazon pairs, and the challenge's `gallery.csv` and `queries.csv`. docs/data.md has
the rules for users. In every table that is read here the index is the line on which a row begins.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Hashable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.common.files import another_kind, open_regular, regular
from visual_search.data.images import Box, ImageItem
from visual_search.data.schema import (
    ALWAYS_TEST,
    BOX_COLUMNS,
    NO,
    PATH_COLUMNS,
    YES,
    boxes_of,
    check_table,
    numbers_of,
)
from visual_search.data.values import twins, value_of

LABELLED_PATH_COLUMNS = PATH_COLUMNS[:2]
"""Of tables with a column `label`: `file_name` (dataset_info.csv, folds.csv), `image_path`."""
ROWS_AT_ONCE = 50_000

# Columns that other people's tables split by, and the words that say so.
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "phase")
SPLIT_WORDS = {"", "train", "training", "val", "valid", "validation", "dev", "test", "testing"}
FLAG_COLUMNS = ("is_valid", "is_val", "is_train", "is_training")


def read_table(path: Path, columns: Iterable[str], *, forgiving: bool = False) -> pd.DataFrame:
    """Read a csv file that must have `columns`, every cell as text; other columns are kept.

    Args:
        path: UTF-8, with or without a byte-order mark, and any line ends.
        columns: that must be there.
        forgiving: cut a row with too many cells and fill one with too few, instead of refusing
            the file: one bad row must not lose a submission.

    Raises:
        UserError: naming the file, and the column where one is missing, or the line that is wrong.
    """
    table = pd.concat(list(table_chunks(path, forgiving=forgiving)))
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {columns_of(table)}"
        )
    return table


def columns_of(table: pd.DataFrame) -> str:
    """The names of the columns, and what is wrong where commas do not part them, in words."""
    names = table.columns.tolist()
    hint = _other_mark(names)
    return ", ".join(map(repr, names)) + (f": {hint}" if hint else "")


def _other_mark(names: list[str]) -> str:
    """What to do where something else than commas parts the columns; empty where commas do."""
    mark = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), "")
    return f"save it with commas in place of {mark!r}" if mark else ""


def table_chunks(path: Path, *, forgiving: bool = False) -> Iterator[pd.DataFrame]:
    """The rows of a csv file as tables of 50,000 rows; at least one, which may have no row.

    Args, raises: as :func:`read_table`.
    """
    if not path.parent.is_dir():
        raise UserError(
            f"the folder {path.parent} does not exist; {path.name} was looked for there"
        )
    if not path.exists():
        raise UserError(f"{path} does not exist")
    rows = _rows(path, forgiving)
    _, header = next(rows, (0, []))
    names = [name.strip() for name in header]
    columns = [name for name in names if name]
    if not columns:
        raise UserError(f"{path} is empty; its first line must name its columns")
    repeated = [name for name in columns if columns.count(name) > 1]
    if repeated:
        raise UserError(f"{path} has the column {repeated[0]!r} twice; remove or rename one")
    chunk = list(islice(rows, ROWS_AT_ONCE))
    while True:
        lines, cells = [line for line, _ in chunk], [row for _, row in chunk]
        by_column = dict(zip(names, zip(*cells, strict=True), strict=True)) if cells else {}
        index = pd.Index(lines, dtype=np.int64)
        yield pd.DataFrame(by_column, index=index, columns=columns, dtype=object)
        if not (chunk := list(islice(rows, ROWS_AT_ONCE))):
            return


def _rows(path: Path, forgiving: bool) -> Iterator[tuple[int, list[str]]]:
    """The cells of the header and of each row, and the line it begins on; blank lines are none."""
    errors = "replace" if forgiving else "strict"
    before, header = 0, list[str]()
    try:
        if not forgiving:
            _refuse_another_kind(path)
        with open(path, newline="", encoding="utf-8-sig", errors=errors, opener=regular) as handle:
            reader = csv.reader(handle, strict=True)
            for cells in reader:
                if cells:
                    header = header or cells
                    if forgiving:
                        cells = [*cells, *[""] * len(header)][: len(header)]
                    elif fault := _fault(cells, header):
                        raise UserError(f"{path} line {before + 1} has {fault}")
                    yield before + 1, cells
                before = reader.line_num
    except csv.Error as error:
        raise UserError(f"{path} is not a readable csv file: line {before + 1}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a readable csv file: it is not UTF-8 ({error.reason} at byte "
            f"{error.start}); save it as CSV UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _fault(row: list[str], header: list[str]) -> str:
    """What a row has that it must not, and what to write instead; empty for a good one."""
    if "\0" in "".join(row):
        return "a zero byte: the file is damaged, or UTF-16; save it as CSV UTF-8"
    width = len(header)
    if len(row) == width:
        return ""
    what = _other_mark(header) or "put a cell that has a comma in it into double quotes"
    if len(row) < width:
        what = "write a comma for every empty cell"
    elif not any(map(str.strip, row[width:])):
        what = "remove the commas at its end"
    return f"{len(row)} cells, but {width} columns are named: {what}"


def _refuse_another_kind(path: Path) -> None:
    with open_regular(path) as handle:
        start = handle.read(512)
        if kind := another_kind(start):
            raise UserError(f"{path} is not a readable csv file: it {kind}")
        if re.match(rb"\s*[\[{]\s*[{\"\]}]", start):
            raise UserError(f"{path} is not a readable csv file: it is JSON: save it as CSV UTF-8")


def values_of(cells: pd.Series) -> pd.Series:
    """A column of ids or labels, each as :func:`value_of` has it."""
    return cells.map({cell: value_of(cell) for cell in cells.unique()})


def ids_of(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """A column of ids by value, whatever it is called.

    Raises:
        UserError: with file and line of the first that is none.
    """
    check_table(table[[column]], path, {column})
    return values_of(table[column])


def rows_by(table: pd.DataFrame, column: str, path: Path) -> dict[str, dict[Hashable, str]]:
    """The rows of a table by the value of their id in a column.

    Raises:
        UserError: with the lines, for an id that is none, or stands in two rows.
    """
    ids = ids_of(table, column, path)
    again = ids[ids.duplicated()]
    if len(again):
        first = ids.index[ids == again.iloc[0]][0]
        raise UserError(
            f"{path} line {again.index[0]}: {column} {again.iloc[0]!r} stands in line {first} "
            "already: remove one of the two lines"
        )
    return dict(zip(ids, table.to_dict("records"), strict=True))


def compared(*columns: pd.Series) -> list[np.ndarray]:
    """Ids that are compared with each other, as :func:`values_of` has them, str.

    Where all of them are whole numbers, leading zeros do not count.
    """
    if all(column.str.fullmatch("-?[0-9]{1,100}").all() for column in columns):
        columns = tuple(column.map(int) for column in columns)
    return [column.to_numpy().astype(str) for column in columns]


def tell(sentence: str) -> None:
    """Say on standard error what was read; of processes that train together, one speaks."""
    if os.getenv("RANK", "0") == "0":
        print(sentence, file=sys.stderr)


def tell_twins(cells: pd.Series, file: Path, what: str = "labels") -> None:
    """Once in a process, name the first values that look alike, and say how many more do."""
    if alike := twins(cells, file):
        more = f", and {len(alike) - 1} more pairs" if len(alike) > 1 else ""
        _tell_once(f"these {what} are different; if they should be one, mend: {alike[0]}{more}")


@cache
def _tell_once(sentence: str) -> None:
    tell(sentence)


def read_gallery(path: Path, *, forgiving: bool = False) -> pd.DataFrame:
    """The challenge's `gallery.csv`: `seller_img_id, img_path` and, where known, `product_id`.

    Raises:
        UserError: as :func:`read_table`; also when it lists no image.
    """
    table = read_table(path, ["seller_img_id", "img_path"], forgiving=forgiving)
    if table.empty:
        raise UserError(f"{path} lists no gallery image: there is nothing to rank")
    return table


def read_queries(path: Path, *, forgiving: bool = False) -> pd.DataFrame:
    """The challenge's `queries.csv`: `user_img_id, img_path`, the box, maybe `product_id`.

    Raises:
        UserError: as :func:`read_table`; also when it lists no query.
    """
    table = read_table(path, ["user_img_id", "img_path", *BOX_COLUMNS], forgiving=forgiving)
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
    rows = zip(paths, boxes(table).tolist(), strict=True)
    return [ImageItem(path, as_box(box)) for path, box in rows]


def as_box(values: list[int]) -> Box:
    """Four numbers as a box."""
    x, y, w, h = values
    return x, y, w, h


def read_common_table(file: Path) -> pd.DataFrame:
    """The table with every cell as text: labels as :func:`value_of`, others as they stand.

    Raises:
        UserError: naming file and column or line: no column `label`, not exactly one of the
            path columns `image_path` and `file_name`, the first cell that breaks a rule of
            :data:`RULES`, and a column of another kit that says what trains.
    """
    table = read_table(file, ["label"])
    paths = [column for column in LABELLED_PATH_COLUMNS if column in table.columns]
    if len(paths) != 1:
        raise UserError(
            f"{file} needs the images' paths in one of the columns 'image_path' (Amazon pairs) "
            f"and 'file_name' (dataset_info.csv, folds.csv); it has {columns_of(table)}"
        )
    check_table(table, file)
    refuse_other_splits(table, file)
    table = table.assign(label=values_of(table["label"]))
    tell_twins(table["label"], file)
    return table


def refuse_other_splits(table: pd.DataFrame, file: Path) -> None:
    """Rows that another kit's column keeps from training must not train without a word."""
    if {"is_test", "evaluation_status", "fold"} & set(table.columns):
        return
    for column in table.columns:
        kind = column.strip().casefold()
        if kind not in SPLIT_COLUMNS + FLAG_COLUMNS:
            continue
        words = set(table[column].str.strip().str.casefold())
        splits = words - {"train", "training"} and words <= SPLIT_WORDS
        if splits or (kind in FLAG_COLUMNS and len(words) > 1 and words <= {*YES, *NO}):
            raise UserError(
                f"{file} has a column {column!r} ({', '.join(sorted(words))}), which is not read: "
                "rename it to 'evaluation_status' (train, query, gallery or test) or 'is_test' (0 "
                "or 1) to keep rows from training, or remove it to train on all"
            )


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


def boxes_in(table: pd.DataFrame) -> list[Box | None]:
    """The box of each row as in :func:`boxes`; None where there is none, or no readable one."""
    return [as_box(box) if box[2] else None for box in boxes(table).tolist()]


def boxes(table: pd.DataFrame) -> np.ndarray:
    """`(rows, 4)`, int64: x, y, width, height, rounded, from `bbox` or `bbox_x`, …

    Zeros where there is none, or no readable one.
    """
    if set(BOX_COLUMNS) <= set(table.columns):
        cells = table[BOX_COLUMNS[0]].str.cat(table[list(BOX_COLUMNS[1:])], ",")
    elif "bbox" in table.columns:
        cells = table["bbox"]
    else:
        return np.zeros((len(table), 4), dtype=np.int64)
    found, _ = boxes_of(cells)
    usable = np.isfinite(found).all(axis=1) & (found[:, 2] > 0)
    # Far outside any image, yet safe to convert.
    return np.where(usable[:, None], found, 0).clip(-(2**31), 2**31).astype(np.int64)
