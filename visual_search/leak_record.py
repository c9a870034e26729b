"""Whether anybody looked for photos that training and evaluation share: a record of each look."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visual_search.files import write_json


def record_path(train: Path) -> Path:
    """Where the looks at a training table are recorded: beside it."""
    return train.with_name(f"{train.name}.leaks.json")


def fingerprint(table: Path) -> str:
    """SHA-256 of a table's file; empty where there is none."""
    if not table.is_file():
        return ""
    with table.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def record(train: Path, test: Path, facts: dict[str, Any]) -> Path:
    """Note that the two tables, as they are now, were compared; an older note of them goes.

    Args:
        train: the training table; the note lies beside it.
        test: the table of evaluation photos.
        facts: what was found.
    """
    path = record_path(train)
    own, theirs = fingerprint(train), fingerprint(test)
    notes = [
        note for note in _notes(path) if note["train_sha256"] == own and note["test"] != str(test)
    ]
    found = {"train_sha256": own, "test": str(test), "test_sha256": theirs, **facts}
    write_json(path, [*notes, found])
    return path


def _notes(path: Path) -> list[dict[str, Any]]:
    """The notes of a record; none where it is missing or was not written by :func:`record`."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        return [note for note in notes if {"train_sha256", "test", "test_sha256"} <= note.keys()]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def unchecked(train: Sequence[Path], test: Sequence[Path]) -> list[tuple[Path, Path]]:
    """The pairs of a training and an evaluation table that were not compared as they are now."""
    prints = {path: fingerprint(path) for path in test}
    missing = []
    for table in train:
        own = fingerprint(table)
        seen = {
            note["test_sha256"]
            for note in _notes(record_path(table))
            if note["train_sha256"] == own
        }
        missing += [(table, path) for path in test if prints[path] not in seen]
    return missing


def warning(train: Sequence[Path], test: Sequence[Path]) -> str:
    """A sentence where a look is missing, with the command for it; else empty."""
    missing = unchecked(train, test)
    if not missing:
        return ""
    sides = [" ".join(dict.fromkeys(str(pair[side]) for pair in missing)) for side in (0, 1)]
    return (
        "nobody has looked yet whether training and development set share photos: "
        f"python dataset/find_leaks.py --train {sides[0]} --test {sides[1]}"
    )
