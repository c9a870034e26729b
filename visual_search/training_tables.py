"""Training photos listed in a csv file: Amazon pairs, `dataset_info.csv`, `folds.csv`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.datasets import LabelledImages, PathList, check_some_exist
from visual_search.errors import UserError
from visual_search.tables import integers, read_table

PATH_COLUMNS = ("image_path", "file_name")
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")
ALWAYS_TEST = -2


def read_training_table(
    file: Path, root: Path | None = None, *, fold: int = -1, name: str | None = None
) -> LabelledImages:
    """The training photos of a table; rows of a test split never come along.

    The columns say what it is: `image_path, label` are Amazon pairs; `file_name, label` with any
    of `bbox` (`x,y,w,h` in pixels of the stored photo; empty is the whole photo), `is_test`
    (0 or 1), `evaluation_status` (train, query, gallery or test) and `fold` (-1 always trains,
    -2 never, 0 and above are the folds) are the common table. Other columns are ignored.

    Args:
        file: the csv file.
        root: folder that its paths are relative to; None is the file's own.
        fold: the fold that is held out of the training; -1 trains on all of them.
        name: of the data set, put in front of the names of its classes (`name/label`).

    Returns:
        The photos; classes are the labels that train, numbered 0, 1, … in the order of their
        text, which `class_names` gives back.

    Raises:
        UserError: naming file and column or line: a missing column, an empty path or label, a
            box or a number that is none, a fold that the table does not have, a table without
            any row that trains, and when no photo of it exists.
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
        _refuse(file, table[column], table[column].str.strip() == "", "it must not be empty")
    trains = _training_rows(table, file, fold)
    if not trains.any():
        raise UserError(
            f"{file} has no row to train on"
            + (f": all of its {len(table)} rows are test rows" if len(table) else "")
        )
    boxes = _boxes(table, file)[trains] if "bbox" in table.columns else None
    table = table[trains]
    folder = file.parent if root is None else root
    photos = PathList(os.path.join(folder, path) for path in table[paths[0]])
    check_some_exist(photos, file, folder)
    numbers, labels = pd.factorize(table["label"], sort=True)
    prefix = f"{name}/" if name else ""
    return LabelledImages(
        photos,
        numbers.astype(np.int64),
        boxes if boxes is not None and boxes.any() else None,
        tuple(f"{prefix}{label}" for label in labels),
    )


def _training_rows(table: pd.DataFrame, file: Path, held_out: int) -> np.ndarray:
    """Which rows train, `(rows,)`, bool."""
    trains = np.ones(len(table), dtype=bool)
    if "is_test" in table.columns:
        answers = table["is_test"].str.strip().str.lower()
        _refuse(file, table["is_test"], ~answers.isin(YES + NO), "write 0 or 1")
        trains &= answers.isin(NO).to_numpy()
    if "evaluation_status" in table.columns:
        status = table["evaluation_status"].str.strip().str.lower()
        unknown = ~status.isin(("", "train", "query", "gallery", "test"))
        expected = "write train, query, gallery or test"
        _refuse(file, table["evaluation_status"], unknown, expected)
        trains &= status.isin(("", "train")).to_numpy()
    if "fold" in table.columns:
        folds = integers(table, "fold", file)
        expected = "write -1 (always train), -2 (never), or a fold from 0 on"
        _refuse(file, table["fold"], folds < ALWAYS_TEST, expected)
        if held_out >= 0 and not (folds == held_out).any():
            known_folds = ", ".join(map(str, np.unique(folds[folds >= 0]))) or "none"
            raise UserError(f"{file} has no fold {held_out} to hold out; its folds: {known_folds}")
        trains &= folds != ALWAYS_TEST
        if held_out >= 0:
            trains &= folds != held_out
    elif held_out >= 0:
        raise UserError(f"{file} has no column 'fold', so fold {held_out} cannot be held out of it")
    return trains


def _boxes(table: pd.DataFrame, file: Path) -> np.ndarray:
    """`(rows, 4)`, int64: x, y, width, height, rounded; zeros where the cell is empty."""
    cells = table["bbox"].str.strip(" []()")
    given = (cells != "").to_numpy()
    boxes = np.zeros((len(table), 4), dtype=np.int64)
    if not given.any():
        return boxes
    parts = cells[given].str.split(",", expand=True).reindex(columns=range(5))
    numbers = parts.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.zeros(len(table), dtype=bool)
    # The fifth column has something in it only where a cell has too many numbers.
    wrong[given] = ~np.isfinite(numbers[:, :4]).all(axis=1) | parts[4].notna().to_numpy()
    _refuse(file, table["bbox"], wrong, "write four numbers x,y,w,h")
    boxes[given] = numbers[:, :4].round().astype(np.int64)
    flat = given & (boxes[:, 2:] <= 0).any(axis=1)
    _refuse(file, table["bbox"], flat, "width and height must be above 0 (x,y,w,h)")
    return boxes


def _refuse(file: Path, column: pd.Series, wrong: pd.Series | np.ndarray, expected: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        # Line 1 is the header, so row 0 of the table stands on line 2.
        raise UserError(
            f"{file} line {rows[0] + 2}: {column.name} is {column.iloc[rows[0]]!r}; {expected}"
            + (f" (and {len(rows) - 1} more lines)" if len(rows) > 1 else "")
        )
