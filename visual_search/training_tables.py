"""Training photos listed in a csv file: Amazon pairs, `dataset_info.csv`, `folds.csv`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.datasets import LabelledImages, PathList, check_some_exist
from visual_search.errors import UserError
from visual_search.tables import boxes, image_names, read_common_table, training_rows


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
    table = read_common_table(file)
    trains = training_rows(table, file, fold)
    if not trains.any():
        raise UserError(
            f"{file} has no row to train on"
            + (f": all of its {len(table)} rows are test rows" if len(table) else "")
        )
    given = boxes(table)
    given = None if given is None else given[trains]
    table = table[trains]
    folder = file.parent if root is None else root
    photos = PathList(os.path.join(folder, path) for path in image_names(table))
    check_some_exist(photos, file, folder)
    numbers, labels = pd.factorize(table["label"], sort=True)
    prefix = f"{name}/" if name else ""
    return LabelledImages(
        photos,
        numbers.astype(np.int64),
        given if given is not None and given.any() else None,
        tuple(f"{prefix}{label}" for label in labels),
    )
