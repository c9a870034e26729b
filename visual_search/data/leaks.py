"""Images that training and evaluation share: near-duplicates by hash, confirmed by embedding."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.common.files import read_json, write_json
from visual_search.data.duplicates import TooManyPairs, hashes_of_table, pairs_between
from visual_search.data.schema import PATH_COLUMNS
from visual_search.data.tables import (
    LABELLED_PATH_COLUMNS,
    columns_of,
    read_common_table,
    read_table,
    training_rows,
)

NAMES = {f"{side}_{fact}" for side in ("train", "test") for fact in ("sha256", "root", "fold")} | {
    "test"
}
"""What every note says."""


@dataclass(frozen=True)
class Side:
    """Which images of a table train, or are judged on."""

    table: Path
    root: Path | None = None
    """Folder of the table's paths; None is the usual one."""
    fold: int = -1
    """Of a folds.csv, the fold that does not train; -1 is none."""

    @property
    def folder(self) -> str:
        """`root` as seen from the table, so that both can move together; `.` is the usual one."""
        if self.root is None:
            return "."
        return os.path.relpath(self.root.resolve(), self.table.parent.resolve())

    def facts(self, side: str) -> dict[str, Any]:
        """What a note says of it, under names that begin with `side`."""
        return {
            f"{side}_sha256": fingerprint(self.table),
            f"{side}_root": self.folder,
            f"{side}_fold": self.fold,
        }


def record_path(train: Path) -> Path:
    """Where the looks at a training table are recorded: beside it."""
    return train.with_name(f"{train.name}.leaks.json")


def fingerprint(table: Path) -> str:
    """SHA-256 of a table's file; empty where there is none."""
    if not table.is_file():
        return ""
    with table.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def record(train: Side, test: Side, facts: dict[str, Any]) -> Path:
    """Note that the two sides, as they are now, were compared; an older note of them goes.

    Args:
        train: what trains; the note lies beside its table.
        test: the images of the evaluation.
        facts: what was found.
    """
    path = record_path(train.table)
    own, theirs = train.facts("train"), test.facts("test")
    same = {"test": str(test.table), "test_root": test.folder, "test_fold": test.fold, **own}
    notes = [
        note
        for note in _notes(path)
        if note["train_sha256"] == own["train_sha256"]
        and any(note[name] != value for name, value in same.items())
    ]
    write_json(path, [*notes, {"test": str(test.table), **own, **theirs, **facts}])
    return path


def _notes(path: Path) -> list[dict[str, Any]]:
    """The notes of a record; none where it is missing or was not written by :func:`record`."""
    try:
        notes = read_json(path)
        return [note for note in notes if note.keys() >= NAMES]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def unchecked(train: Sequence[Side], test: Sequence[Side]) -> list[tuple[Side, Side]]:
    """The pairs of a training and an evaluation side that were not compared as they are now."""
    wanted = [(side, side.facts("test")) for side in test]
    missing = []
    for side in train:
        own, notes = side.facts("train"), _notes(record_path(side.table))
        missing += [
            (side, other)
            for other, theirs in wanted
            if not any((own | theirs).items() <= note.items() for note in notes)
        ]
    return missing


def shared_by_folds(train: Side, test: Side) -> bool:
    """Whether the held-out fold of one table trains on the other side: no search is needed."""
    same = fingerprint(train.table) == fingerprint(test.table) != ""
    return same and test.fold >= 0 and train.fold != test.fold


def warning(train: Sequence[Side], test: Sequence[Side]) -> str:
    """Where both sides share images, or a look is missing, a sentence; else empty."""
    options: dict[tuple[str, ...], tuple[dict[str, None], dict[str, None]]] = {}
    words = []
    for pair in unchecked(train, test):
        if shared_by_folds(*pair):
            ours, theirs = pair
            words.append(
                f"the development set is fold {theirs.fold} of {theirs.table}, which was trained on"
                + (f" where fold {ours.fold} was held out" if ours.fold >= 0 else "")
            )
            continue
        tables = options.setdefault(_options(*pair), ({}, {}))
        for names, side in zip(tables, pair, strict=True):
            names[str(side.table)] = None
    commands = [
        shlex.join(["python", "dataset/find_leaks.py", "--train", *ours, "--test", *theirs, *more])
        for more, (ours, theirs) in options.items()
    ]
    if commands:
        words.append(
            "nobody has looked yet whether training and development set share images: "
            + " && ".join(commands)
        )
    return "; ".join(words)


def _options(train: Side, test: Side) -> tuple[str, ...]:
    """What find_leaks.py has to be told beside the tables."""
    found: list[str] = []
    for side, name in ((train, "--train_root"), (test, "--test_root")):
        if side.folder != ".":
            found += [name, str(side.root)]
    if train.fold >= 0:
        found += ["--fold", str(train.fold)]
    if test.fold != train.fold:
        found += ["--test_fold", str(test.fold)]
    return tuple(found)


def product10k_folder(file: Path) -> Path:
    """Where the images of a list of Product10K usually lie."""
    return file.parent / ("train" if file.name.startswith("train") else "test")


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


@dataclass(frozen=True)
class Leak:
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
    found = hashes_of_table(table, file, paths, f"hashes of {file.name}")
    readable = [i for i in range(len(paths)) if i not in found.unreadable]
    if not readable:
        raise UserError(
            f"not one image of {file} can be read"
            + (f", for example {paths[0]}: {found.unreadable[0]}" if paths else ": it lists none")
        )
    values = found.values[readable]
    return ListedImages([paths[i] for i in readable], values, len(found.unreadable), fold)


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
        pairs = pairs_between(test.hashes, train.hashes, radius, most=MOST_PAIRS, progress=progress)
    except TooManyPairs as error:
        raise UserError(
            f"more than {MOST_PAIRS} pairs lie within {radius} bits: lower --threshold"
        ) from error
    sides = (
        [test.paths[i] for i in pairs.left.tolist()],
        [train.paths[i] for i in pairs.right.tolist()],
    )
    found = np.full(len(pairs), np.nan)
    if cosines is not None and len(pairs):
        found = cosines(*sides)
    order = np.lexsort((pairs.right, pairs.left, -np.nan_to_num(found), pairs.distance))
    return [
        Leak(
            str(sides[0][i]),
            str(sides[1][i]),
            int(pairs.distance[i]),
            None if cosines is None else round(float(found[i]), 4),
            None if cosines is None else bool(found[i] >= threshold),
        )
        for i in order.tolist()
    ]


def leak_table(leaks: Sequence[Leak]) -> pd.DataFrame:
    """The leaks as a table, a column for each field."""
    columns = list(Leak.__dataclass_fields__)
    return pd.DataFrame(
        [[getattr(leak, name) for name in columns] for leak in leaks], columns=columns
    )
