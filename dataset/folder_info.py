"""From a folder of class folders to `dataset_info.csv`; a killed job goes on where it was."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.files import written_atomically
from visual_search.common.processes import available_cores
from visual_search.common.progress import progress_bar
from visual_search.data.dataset_info import (
    BROKEN_PHOTOS,
    DATASET_INFO,
    BrokenPhotos,
    InfoRow,
    read_each,
    write_dataset_info,
)
from visual_search.data.image_files import (
    FORMATS,
    UnreadableImage,
    is_image,
    open_file,
    read_bytes,
    stored_size,
)

DUPLICATE_FILES = "duplicate_files.csv"
# Files with the same size and the same bytes here are compared as a whole.
SAMPLE_BYTES = 8192


@dataclass
class FolderInfo:
    """What was found in a folder."""

    table: Path
    photos: int = 0
    """Rows of the table."""
    classes: int = 0
    small_classes: int = 0
    """Left out for having too few photos."""
    broken: int = 0
    duplicates: int = 0
    outside: int = 0
    """Photos that lie in no class folder."""
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by their ending."""


@dataclass(frozen=True)
class Scanned:
    """A photo's file as the folder lists it."""

    path: Path
    name: str
    """Relative to the folder of the table."""
    label: str
    bytes: int
    changed: int
    """Time of the last change, ns."""


def describe_folder(
    folder: Path, target: Path, *, hashes: bool = False, min_images: int = 1, workers: int = 0
) -> FolderInfo:
    """Write `dataset_info.csv`, `broken_photos.csv` and `duplicate_files.csv`.

    The order is that of the names, so the same folder gives the same tables. Memory does not grow
    with the photos, but for 8 bytes each (to find equal files) and the names of the broken ones.

    Args:
        folder: holds a folder for each class, at any depth; a photo's label is the path of its
            folder.
        target: where the tables go; their paths are relative to it.
        hashes: add the perceptual hash, see `visual_search.data.duplicates`.
        min_images: classes with fewer readable photos are left out.
        workers: threads; 0 is by the cores.

    Raises:
        UserError: when there is no such folder, or no photo of a class in it.
    """
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist; --dataset_path names a folder")
    info = FolderInfo(target / DATASET_INFO)
    target.mkdir(parents=True, exist_ok=True)
    settings = f"{folder.resolve()} hashes={hashes}"
    with Journal(target / f".{DATASET_INFO}.journal", settings) as journal:
        _describe_photos(folder, target, journal, info, hashes, workers)
        broken = BrokenPhotos()
        rows = _rows(journal, info, broken, min_images)
        info.photos = write_dataset_info(info.table, rows, ["hash"] if hashes else [])
        info.broken = len(broken)
        broken.write(target / BROKEN_PHOTOS)
        info.duplicates = _list_duplicates(journal, target)
    journal.remove()
    return info


def _describe_photos(
    folder: Path, target: Path, journal: Journal, info: FolderInfo, hashes: bool, workers: int
) -> None:
    """Bring the journal to the end of the folder."""
    todo: deque[Scanned] = deque()

    def unknown() -> Iterator[Path]:
        for photo in _scan(folder, target, info):
            if journal.knows(photo.name, photo.bytes, photo.changed):
                bar.update()
            else:
                todo.append(photo)
                yield photo.path

    read = _sizes
    if hashes:
        read, workers = _sizes_and_hash, workers or available_cores()
    with progress_bar("photos", "img", total=_count(folder)) as bar:
        for answer in read_each(unknown(), read, workers):
            photo = todo.popleft()
            entry = Entry(photo.name, photo.label, photo.bytes, photo.changed)
            if isinstance(answer, UnreadableImage):
                entry = entry._replace(reason=str(answer))
            else:
                entry = entry._replace(**answer)
            journal.append(entry)
            bar.update()
    journal.finish()
    if not journal.entries:
        raise UserError(
            f"there is no image in a class folder of {folder}; images are {', '.join(FORMATS)}"
        )


def _scan(folder: Path, target: Path, info: FolderInfo) -> Iterator[Scanned]:
    """The photos below a folder in the order of their names; one folder's list is held at once."""
    prefix = os.path.relpath(folder.resolve(), target.resolve())
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if _is_below(folder, Path(place), name))
        label = os.path.relpath(place, folder)
        for name in sorted(names):
            if name.startswith(".") or name in (DATASET_INFO, BROKEN_PHOTOS, DUPLICATE_FILES):
                continue
            if not is_image(Path(place, name)):
                info.others[Path(name).suffix.lower() or "without an ending"] += 1
            elif label == ".":
                info.outside += 1
            else:
                path = Path(place, name)
                try:
                    facts = path.stat()
                    size, changed = facts.st_size, facts.st_mtime_ns
                except OSError:  # a link to nowhere; reading it says so
                    size = changed = -1
                relative = os.path.normpath(os.path.join(prefix, label, name))
                yield Scanned(path, relative, label, size, changed)


def _refuse(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be read ({error.strerror})") from error


def _is_below(top: Path, place: Path, name: str) -> bool:
    """Whether to go into a folder: not into hidden ones, nor by a link into one we came from.

    Args:
        top: where the walk began.
        place: where it is; the way there may itself lead over links.
        name: of a folder there.
    """
    if name.startswith("."):
        return False
    path = place / name
    if not path.is_symlink():
        return True
    target, way = path.resolve(), [place, *place.parents]
    real = [step.resolve() for step in way[: way.index(top) + 1]]
    return not any(target in (step / "_").parents for step in real)


def _count(folder: Path) -> int:
    """Photos below a folder, for the progress bar."""
    walk = os.walk(folder, followlinks=False)
    return sum(is_image(Path(place, name)) for place, _, names in walk for name in names)


def _sizes(path: Path) -> dict[str, Any]:
    _check_name(path)
    width, height = stored_size(path)
    with open_file(path) as handle:
        head = handle.read(SAMPLE_BYTES)
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(size - SAMPLE_BYTES, 0))
        sample = _sample(size, head, handle.read(SAMPLE_BYTES))
    return {"width": width, "height": height, "sample": sample}


def _sizes_and_hash(path: Path) -> dict[str, Any]:
    from visual_search.data.duplicates import hash_and_size

    _check_name(path)
    data = read_bytes(path)
    found, (width, height) = hash_and_size(data)
    sample = _sample(len(data), data[:SAMPLE_BYTES], data[-SAMPLE_BYTES:])
    return {"width": width, "height": height, "sample": sample, "hash": found}


def _check_name(path: Path) -> None:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise UnreadableImage("the file's name is not UTF-8: rename it") from None


def _sample(size: int, head: bytes, tail: bytes) -> int:
    """The same for files with the same bytes, and for few others; 63 bits."""
    digest = hashlib.blake2b(head, digest_size=8, salt=size.to_bytes(8, "little"))
    digest.update(tail)
    return int.from_bytes(digest.digest(), "little") >> 1


def _rows(
    journal: Journal, info: FolderInfo, broken: BrokenPhotos, min_images: int
) -> Iterator[InfoRow]:
    """The table's rows; the broken photos and the small classes are left out and counted."""
    counts = Counter(entry.label for entry in journal.read() if not entry.reason)
    kept = {label for label, count in counts.items() if count >= min_images}
    info.classes, info.small_classes = len(kept), len(counts) - len(kept)
    for entry in journal.read():
        if entry.reason:
            broken.add(entry.name.encode("utf-8", "backslashreplace").decode(), entry.reason)
        elif entry.label in kept:
            yield InfoRow(
                entry.name,
                entry.label,
                width=entry.width,
                height=entry.height,
                hash=entry.hash,
            )


def _list_duplicates(journal: Journal, target: Path) -> int:
    """Write which files have the same bytes as an earlier one; returns how many."""
    samples = np.fromiter((entry.sample for entry in journal.read()), dtype=np.int64)
    values, counts = np.unique(samples, return_counts=True)
    repeated = set(values[(counts > 1) & (values >= 0)].tolist())
    file = target / DUPLICATE_FILES
    file.unlink(missing_ok=True)
    if not repeated:
        return 0
    count = 0
    with (
        written_atomically(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("file_name", "duplicate_of"))
        for name, original in _equal_files(journal, target, repeated):
            writer.writerow((name, original))
            count += 1
    if not count:
        file.unlink()
    return count


def _equal_files(journal: Journal, target: Path, samples: set[int]) -> Iterator[tuple[str, str]]:
    """Each file whose bytes an earlier one has, and that one, of those with one of `samples`."""
    first: dict[bytes, str] = {}
    for entry in journal.read():
        if entry.sample in samples and not entry.reason:
            with (target / entry.name).open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").digest()
            original = first.setdefault(digest, entry.name)
            if original != entry.name:
                yield entry.name, original


class Entry(NamedTuple):
    """One photo, and what was found out about it."""

    name: str
    label: str
    bytes: int
    changed: int
    """Time of the file's last change, ns."""
    width: int = 0
    height: int = 0
    hash: str = ""
    sample: int = -1
    """Of the file's bytes; -1 for a broken photo."""
    reason: str = ""
    """Why the photo cannot be read; empty for a good one."""


class Journal:
    """Entries in the order of the photos. A second run believes it as far as the photos agree."""

    def __init__(self, path: Path, settings: str) -> None:
        """
        Args:
            path: the file; one written with other settings is begun anew.
            settings: what decides over the entries.
        """
        self.path = path
        self.entries = 0
        """That hold, so far."""
        head = json.dumps({"settings": settings}).encode() + b"\n"
        if path.exists():
            with path.open("rb") as handle:
                goes_on = handle.readline() == head
        else:
            goes_on = False
        if not goes_on:
            path.write_bytes(head)
        self.begin = self.end = len(head)
        self.handle = path.open("r+b")
        self.handle.seek(self.begin)
        self.reading = True

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.handle.close()

    def knows(self, name: str, size: int, changed: int) -> bool:
        """Whether the next entry is of this photo, as the file is now; asked in their order."""
        if not self.reading:
            return False
        line = self.handle.readline()
        entry = _entry(line)
        if entry is None or (entry.name, entry.bytes, entry.changed) != (name, size, changed):
            self.finish()
            return False
        self.end += len(line)
        self.entries += 1
        return True

    def finish(self) -> None:
        """Cut off what does not hold (any more); all is on disk after this."""
        if self.reading:
            self.reading = False
            self.handle.seek(self.end)
            self.handle.truncate()
        self.handle.flush()

    def append(self, entry: Entry) -> None:
        """Write one more entry down."""
        if self.reading:
            self.finish()
        self.handle.write(json.dumps(entry).encode() + b"\n")
        self.entries += 1

    def read(self) -> Iterator[Entry]:
        """All entries, from the file."""
        self.handle.flush()
        with self.path.open("rb") as handle:
            handle.seek(self.begin)
            for line in handle:
                yield Entry(*json.loads(line))

    def remove(self) -> None:
        """The job is done."""
        self.path.unlink(missing_ok=True)


def _entry(line: bytes) -> Entry | None:
    """None for a line that a kill cut off."""
    try:
        return Entry(*json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None
