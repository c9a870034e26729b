"""Real disks that refuse: a full one and a read-only one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str = "512k") -> Iterator[Path]:
    """A file system of its own in a new folder; the test is skipped where it cannot be made."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A disk without a free byte, on which new files can still be made."""
    with small_disk(folder) as disk:
        with suppress(OSError), (disk / "filled").open("wb", buffering=0) as handle:
            while True:
                handle.write(bytes(4096))
        yield disk


@contextmanager
def read_only_disk(folder: Path) -> Iterator[Path]:
    """A disk that cannot be written to."""
    with small_disk(folder) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield disk


REFUSALS = {
    "full": (full_disk, "No space left on device: free some space"),
    "read-only": (read_only_disk, "Read-only file system: write to another folder"),
}
"""By what is wrong: who makes such a folder, and what a command says of it."""
