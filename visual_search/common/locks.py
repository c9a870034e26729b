"""One process at a time at a folder: a lock that the system lets go of when its process ends;
and temporary folders, which the next process removes where one was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from visual_search.common.errors import UserError

LOCK = ".lock"
UNLOCKED_SECONDS = 60
"""A folder may be as young and not locked yet."""


@contextmanager
def alone(place: Path, busy: str) -> Iterator[None]:
    """Keep other processes away till the end of the block, or of this process.

    Where the file system knows no locks, nobody is kept away.

    Args:
        place: a folder, which is locked itself and gets no new file; else a file, made where it
            is missing. What locks a folder is held by forked processes too, even where this one
            was killed: who forks workers takes a file.
        busy: the sentence for whoever comes second.

    Raises:
        UserError: when another process has it.
    """
    is_folder = place.is_dir()
    handle = os.open(place, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        take = fcntl.flock if is_folder else fcntl.lockf
        try:
            take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(busy) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def work_folder(place: Path) -> Iterator[Path]:
    """A folder for half-done work, empty at first, even where a killed process left it; then gone.

    Raises:
        UserError: when another process is at work there.
    """
    place.mkdir(parents=True, exist_ok=True)
    busy = f"another process is at work in {place}: wait until it has ended"
    with alone(place / LOCK, busy):
        try:
            for left in place.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                elif left.name != LOCK:
                    left.unlink()
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A new folder of a random name; those of this user's that killed processes left go first."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError, UserError):
            facts = left.lstat()
            ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
            if ours and facts.st_mtime < time.time() - UNLOCKED_SECONDS:
                with alone(left, "in use"):
                    shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name,
        alone(Path(name), "in use"),
    ):
        yield Path(name)
