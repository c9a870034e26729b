"""Which archives a folder has the contents of, so that none is gone through twice."""

from __future__ import annotations

import json
from pathlib import Path

from dataset.unpacking import unpack
from visual_search.files import write_json

RECORD = ".unpacked.json"


class UnpackedArchives:
    """The archives that were unpacked into a folder, kept in a file there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / RECORD
        try:
            self._done: dict[str, list[int]] = json.loads(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            # Without a record everything is gone through again; what is there is kept.
            self._done = {}

    def __contains__(self, archive: Path) -> bool:
        return self._done.get(str(archive.resolve())) == _state(archive)

    def unpack(self, archive: Path) -> None:
        """Unpack an archive into the folder, unless that was done and it has not changed since.

        Raises:
            UserError: see :func:`dataset.unpacking.unpack`.
        """
        if archive in self:
            return
        unpack(archive, self.folder)
        self._done[str(archive.resolve())] = _state(archive)
        write_json(self.file, self._done)


def _state(archive: Path) -> list[int]:
    status = archive.stat()
    return [status.st_size, status.st_mtime_ns]
