"""What was looked at for shared images: a note beside each training table, and a warning without.

:mod:`visual_search.data.leaks` looks.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visual_search.common.files import read_json, write_json


@dataclass(frozen=True)
class Side:
    """Which images of a table train, or are judged on, and maybe what stood in the table."""

    file: str
    root: str = "."
    """Folder of the table's paths as seen from the table, so that both can move together; `.` is
    the usual one."""
    fold: int = -1
    """Of a folds.csv, the fold that does not train; -1 is none."""
    sha256: str = ""
    """Of the table's bytes; empty where nobody has looked, or there is no such file."""

    @classmethod
    def of(cls, table: str | Path, root: str | Path | None = None, fold: int = -1) -> Side:
        """By its paths; no `root` is the usual folder."""
        table = Path(table)
        folder = os.path.relpath(Path(root).resolve(), table.parent.resolve()) if root else "."
        return cls(str(table), folder, fold)

    @property
    def table(self) -> Path:
        """Its path."""
        return Path(self.file)

    def now(self) -> Side:
        """With what stands in the table now."""
        return replace(self, sha256=fingerprint(self.table))

    def facts(self, side: str) -> dict[str, Any]:
        """What a note says of it as it is now, under names that begin with `side`."""
        now = self.now()
        return {f"{side}_{name}": getattr(now, name) for name in ("sha256", "root", "fold")}


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
    """Note that the two sides, as they are now, were compared; notes of an older table go.

    Args:
        train: what trains; the note lies beside its table.
        test: the images of the evaluation.
        facts: what was found.
    """
    path, own = record_path(train.table), train.facts("train")
    both = own | test.facts("test")
    notes = [
        note
        for note in _notes(path)
        if note.get("train_sha256") == own["train_sha256"] and not both.items() <= note.items()
    ]
    write_json(path, [*notes, {"test": test.file, **both, **facts}])
    return path


def _notes(path: Path) -> list[dict[str, Any]]:
    """The notes of a record; none where it is missing or cannot be read."""
    try:
        return [note for note in read_json(path) if isinstance(note, dict)]
    except (OSError, ValueError, TypeError):
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
            names[side.file] = None
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
        if side.root != ".":
            found += [name, str(side.table.parent / side.root)]
    if train.fold >= 0:
        found += ["--fold", str(train.fold)]
    if test.fold != train.fold:
        found += ["--test_fold", str(test.fold)]
    return tuple(found)


def product10k_folder(file: Path) -> Path:
    """Where the images of a list of Product10K usually lie."""
    return file.parent / ("train" if file.name.startswith("train") else "test")
