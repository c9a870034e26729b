"""From a folder of class folders to `dataset_info.csv`; a killed job goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from visual_search.common.errors import UserError
from visual_search.common.files import naming, remove_begun
from visual_search.common.locks import alone
from visual_search.common.processes import available_cores
from visual_search.common.progress import progress_bar
from visual_search.data.dataset_info import (
    BROKEN_IMAGES,
    DATASET_INFO,
    InfoRow,
    read_each,
    write_broken,
    write_dataset_info,
    write_list,
)
from visual_search.data.image_files import (
    FORMATS,
    UnreadableImage,
    is_image,
    read_bytes,
    stored_size,
)
from visual_search.data.values import fault_of, value_of

DUPLICATE_FILES = "duplicate_files.csv"


@dataclass
class FolderInfo:
    """What was found in a folder."""

    table: Path
    images: int = 0
    """Rows of the table."""
    classes: int = 0
    merged: dict[str, str] = field(default_factory=dict)
    """Folders whose names have the value of an earlier one's, which is this: they are one class."""
    notes: Counter[str] = field(default_factory=Counter)
    """How many there are of what the user should know of, in words."""
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by their ending."""


class Entry(NamedTuple):
    """One image, and what was found out about it."""

    name: str
    """Relative to the folder of the table."""
    label: str
    bytes: int
    changed: int
    """Time of the file's last change, ns."""
    width: int = 0
    height: int = 0
    hash: str = ""
    reason: str = ""
    """Why the image cannot be read; empty for a good one."""


def describe_folder(
    folder: Path, target: Path, *, hashes: bool = False, min_images: int = 1, workers: int = 0
) -> FolderInfo:
    """Write `dataset_info.csv`, `broken_photos.csv` and `duplicate_files.csv` of class folders.

    Class folders lie at any depth: an image's label is the path of its folder, each name by value
    (:func:`visual_search.data.values.value_of`). The order is that of the names, so the same folder
    gives the same tables.

    Args:
        target: where the tables go; their paths are relative to it.
        hashes: add the perceptual hash, see `visual_search.data.duplicates`.
        min_images: classes with fewer readable images are left out.
        workers: threads; 0 is by the cores.

    Raises:
        UserError: when there is no such folder, no image of a class in it, or a class folder's
            name is none.
    """
    from visual_search.data.tables import read_table, tell_twins

    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist; --dataset_path names a folder")
    target.mkdir(parents=True, exist_ok=True)
    with alone(target, f"another process is writing tables into {target}: wait until it ends"):
        for name in (DATASET_INFO, BROKEN_IMAGES, DUPLICATE_FILES):
            remove_begun(target / name)
        info = FolderInfo(target / DATASET_INFO)
        found = list(_scan(folder, target, info))
        if not found:
            raise UserError(
                f"there is no image in a class folder of {folder}; images are {', '.join(FORMATS)}"
            )
        journal = target / f".{DATASET_INFO}.{'hashes' if hashes else 'sizes'}.journal"
        entries = _read_images(found, target, journal, hashes, workers)
        counts = Counter(entry.label for entry in entries if not entry.reason)
        kept = {label for label, count in counts.items() if count >= min_images}
        info.classes = len(kept)
        small = f"classes with fewer than {min_images} readable images, left out"
        info.notes[small] = len({entry.label for entry in entries}) - len(kept)
        rows = (
            InfoRow(e.name, e.label, width=e.width, height=e.height, hash=e.hash)
            for e in entries
            if not e.reason and e.label in kept
        )
        info.images = write_dataset_info(info.table, rows, ["hash"] if hashes else [])
        broken = [
            (entry.name.encode("utf-8", "backslashreplace").decode(), entry.reason)
            for entry in entries
            if entry.reason
        ]
        info.notes["broken images, listed in broken_photos.csv"] = len(broken)
        write_broken(target / BROKEN_IMAGES, broken)
        copies = "files with the bytes of another, listed in duplicate_files.csv"
        info.notes[copies] = _list_duplicates(entries, target)
        for journal in target.glob(f".{DATASET_INFO}*.journal"):
            journal.unlink()
        tell_twins(read_table(info.table, ["label"])["label"], info.table)
        return info


def _read_images(
    found: list[Entry], target: Path, journal: Path, hashes: bool, workers: int
) -> list[Entry]:
    """Find out what a killed run's journal does not know yet about the images; write it there."""
    known: dict[str, Entry] = {}

    def is_known(entry: Entry) -> bool:
        return entry.name in known and known[entry.name][:4] == entry[:4]

    workers = workers or (available_cores() if hashes else 0)
    unknown = (target / entry.name for entry in found if not is_known(entry))
    new = read_each(unknown, lambda path: _facts(path, hashes), workers)
    entries = []
    with naming(journal), journal.open("a+", encoding="utf-8", errors="replace") as handle:
        handle.seek(0)
        for line in handle:
            with suppress(ValueError, TypeError):  # a line that a kill cut off
                entry = Entry(*json.loads(line))
                known[entry.name] = entry
        handle.write("\n")
        for entry in progress_bar("images", "img", iterable=found):
            if is_known(entry):
                entries.append(known[entry.name])
                continue
            answer = next(new)
            facts = {"reason": str(answer)} if isinstance(answer, UnreadableImage) else answer
            entries.append(entry._replace(**facts))
            handle.write(json.dumps(entries[-1]) + "\n")
    return entries


def _scan(folder: Path, target: Path, info: FolderInfo) -> Iterator[Entry]:
    """The images below a folder in the order of their names."""
    prefix = os.path.relpath(folder.resolve(), target.resolve())
    places: dict[str, str] = {}
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if _is_below(folder, Path(place), name))
        inside = os.path.relpath(place, folder)
        label = "/".join(map(value_of, Path(inside).parts))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or name in (DATASET_INFO, BROKEN_IMAGES, DUPLICATE_FILES):
                continue
            if not is_image(path):
                info.others[path.suffix.lower() or "without an ending"] += 1
            elif inside == ".":
                info.notes[f"images right in {folder}, outside any class, left out"] += 1
            elif fault := fault_of(label):
                raise UserError(f"the class folder {place!r} is the label {label!r}; {fault}")
            else:
                if (first := places.setdefault(label, inside)) != inside:
                    info.merged[inside] = first
                size = changed = -1
                with suppress(OSError):  # a link to nowhere; reading it says so
                    size, changed = path.stat().st_size, path.stat().st_mtime_ns
                relative = os.path.normpath(os.path.join(prefix, inside, name))
                yield Entry(relative, label, size, changed)


def _refuse(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be read ({error.strerror})") from error


def _is_below(top: Path, place: Path, name: str) -> bool:
    """Whether to go into a folder: not into hidden ones, nor by a link into one we came from.

    The way from `top`, where the walk began, to `place` may itself lead over links.
    """
    if name.startswith("."):
        return False
    path = place / name
    if not path.is_symlink():
        return True
    target, way = path.resolve(), [place, *place.parents]
    return not any(step.resolve().is_relative_to(target) for step in way[: way.index(top) + 1])


def _facts(path: Path, hashes: bool) -> dict[str, Any]:
    """Size and, with `hashes`, the hash of an image."""
    from visual_search.data.duplicates import hash_and_size

    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise UnreadableImage("the file's name is not UTF-8: rename it") from None
    found, (width, height) = hash_and_size(read_bytes(path)) if hashes else ("", stored_size(path))
    return {"width": width, "height": height, "hash": found}


def _list_duplicates(entries: list[Entry], target: Path) -> int:
    """Write which files have the same bytes as an earlier one; returns how many."""
    counts = Counter(entry.bytes for entry in entries if not entry.reason)
    first: dict[bytes, str] = {}
    pairs = []
    for entry in entries:
        if not entry.reason and counts[entry.bytes] > 1:
            digest = hashlib.sha256(read_bytes(target / entry.name)).digest()
            original = first.setdefault(digest, entry.name)
            if original != entry.name:
                pairs.append((entry.name, original))
    write_list(target / DUPLICATE_FILES, ("file_name", "duplicate_of"), pairs)
    return len(pairs)
