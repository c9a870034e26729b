"""What a job knows of each photo so far, on disk line by line, so that a kill loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple


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
