"""What processes that were stopped or killed leave behind, and who removes it."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.commands import refused
from tests.kills import another_process, sleep_on, wait_for
from visual_search.common.errors import run_command
from visual_search.common.files import written_atomically
from visual_search.common.locks import UNLOCKED_SECONDS, temporary_folder, work_folder


def make_old(folder: Path) -> Path:
    long_ago = time.time() - 2 * UNLOCKED_SECONDS
    os.utime(folder, (long_ago, long_ago))
    return folder


def test_temporary_folders_of_killed_processes_go_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def hang() -> None:
        with temporary_folder("kit_") as folder:
            (folder / "large").touch()
            sleep_on()

    with another_process(hang):
        wait_for(lambda: list(tmp_path.glob("kit_*/large")))
        (killed,) = tmp_path.iterdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "kit_link").symlink_to(elsewhere)
    with temporary_folder("kit_") as young:
        assert killed.is_dir()  # it may be about to be locked
        make_old(killed)
        make_old(young)
        with temporary_folder("kit_"):
            assert not killed.exists()
            assert young.is_dir(), "it is in use"
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "kit_link"}


def test_half_done_work_is_one_process_s_and_goes_with_the_next(tmp_path: Path) -> None:
    place = tmp_path / ".x.parts"

    def hang() -> None:
        with work_folder(place) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "half").touch()
            sleep_on()

    def again() -> None:
        with work_folder(place) as folder:
            assert [path.name for path in folder.iterdir()] == [".lock"]
            (folder / "new").touch()

    with another_process(hang):
        wait_for((place / "sub" / "half").exists)
        refused("another process is at work in", again)
        assert (place / "sub" / "half").exists()
    again()
    assert not place.exists()


def test_a_command_that_is_told_to_stop_leaves_nothing(tmp_path: Path) -> None:
    def main() -> None:
        with written_atomically(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            sleep_on()

    with another_process(lambda: run_command(main)) as child:
        wait_for(lambda: any(path.stat().st_size for path in tmp_path.iterdir()))
        os.kill(child, signal.SIGTERM)
        wait_for(lambda: not list(tmp_path.iterdir()))
