"""Images that training and evaluation share: near-duplicates by hash, confirmed by embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visual_search.common.errors import UserError
from visual_search.data.duplicates import TooManyPairs, hashes_of_table, pairs_between
from visual_search.data.leak_record import product10k_folder
from visual_search.data.schema import PATH_COLUMNS
from visual_search.data.tables import (
    LABELLED_PATH_COLUMNS,
    columns_of,
    read_common_table,
    read_table,
    training_rows,
)

# The column of the paths says which kind of table it is; Product10K's lists have `name`.
COLUMNS = (*PATH_COLUMNS, "name")
# More would not be looked at by anybody, and mean that the threshold does not tell images apart.
MOST_PAIRS = 5_000_000

Cosines = Callable[[Sequence[Path], Sequence[Path]], np.ndarray]
"""Of each pair of images, the cosine of their embeddings, -1..1."""


@dataclass(frozen=True)
class ListedImages:
    """The images of one or several tables, each once."""

    paths: list[Path]
    hashes: np.ndarray
    """`(n,)`, uint64."""
    unreadable: int
    """Images that were listed but have no hash."""
    fold: int = -1
    """The fold that was held out; -1 where there is none, or the table has no folds."""


class Leak(NamedTuple):
    """An image of the evaluation that is also an image of the training, or nearly."""

    test_photo: str
    train_photo: str
    distance: int
    """Bits, 0..64, between the hashes."""
    cosine: float | None
    """Of the embeddings; None where they were not compared."""
    confirmed: bool | None
    """Whether the cosine reaches the threshold; None as above."""


def list_images(file: Path, root: Path | None, trains: bool, fold: int = -1) -> ListedImages:
    """The images of a table and their hashes, from its column `hash` or from the images.

    Args:
        file: `dataset_info.csv` or `folds.csv`, Amazon pairs, the challenge's `gallery.csv` or
            `queries.csv`, or a list of Product10K.
        root: folder that its paths are relative to; None is the file's own, and for a list of
            Product10K the folder `train` or `test` in it.
        trains: of a table with both, take the rows that train; False takes those that do not.
        fold: of a folds.csv, the fold that does not train; -1 is none.

    Raises:
        UserError: naming file, column and line of what is wrong; also when not one image of it
            can be read.
    """
    table = read_table(file, [])
    column = next((name for name in COLUMNS if name in table.columns), None)
    if column is None or (column == "name" and "class" not in table.columns):
        raise UserError(
            f"{file} has none of the columns {', '.join(map(repr, COLUMNS))} (the last with "
            f"'class') that name images; it has {columns_of(table)}"
        )
    folder = file.parent if root is None else root
    fold = fold if "fold" in table.columns else -1
    if column in LABELLED_PATH_COLUMNS:
        table = read_common_table(file)
        train_rows = training_rows(table, file, fold)
        if not train_rows.all():
            table = table[train_rows if trains else ~train_rows]
    elif column == "name" and root is None:
        folder = product10k_folder(file)
    table = table.drop_duplicates(column)
    paths = [folder / name for name in table[column]]
    hashes, unreadable = hashes_of_table(table, file, paths, f"hashes of {file.name}")
    readable = [i for i in range(len(paths)) if i not in unreadable]
    if not readable:
        raise UserError(
            f"not one image of {file} can be read"
            + (f", for example {paths[0]}: {unreadable[0]}" if paths else ": it lists none")
        )
    return ListedImages([paths[i] for i in readable], hashes[readable], len(unreadable), fold)


def find_leaks(
    train: ListedImages,
    test: ListedImages,
    radius: int,
    cosines: Cosines | None = None,
    threshold: float = 0.9,
    *,
    progress: bool = True,
) -> list[Leak]:
    """Every pair of a test and a train image within `radius` bits, nearest pairs first.

    Args:
        train: the images that train.
        test: the images that are judged on.
        radius: Hamming distance, 0..64.
        cosines: compares the embeddings of such pairs; None leaves it at the hashes.
        threshold: cosine from which on a pair is confirmed.
        progress: whether there is a progress bar.

    Raises:
        UserError: when there are more pairs than anybody can look at.
    """
    try:
        left, right, distance = pairs_between(
            test.hashes, train.hashes, radius, most=MOST_PAIRS, progress=progress
        )
    except TooManyPairs as error:
        raise UserError(
            f"more than {MOST_PAIRS} pairs lie within {radius} bits: lower --threshold"
        ) from error
    sides = [test.paths[i] for i in left.tolist()], [train.paths[i] for i in right.tolist()]
    found = np.full(len(left), np.nan)
    if cosines is not None and len(left):
        found = cosines(*sides)
    return [
        Leak(
            str(sides[0][i]),
            str(sides[1][i]),
            int(distance[i]),
            None if cosines is None else round(float(found[i]), 4),
            None if cosines is None else bool(found[i] >= threshold),
        )
        for i in np.lexsort((right, left, -np.nan_to_num(found), distance)).tolist()
    ]
