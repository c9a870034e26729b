"""What processes that were stopped or killed leave behind, and who removes it."""

import os
import signal
from pathlib import Path

from tests.commands import refused
from tests.kills import another_process, sleep_on, wait_for
from visual_search.common.errors import run_command
from visual_search.common.files import written_atomically
from visual_search.common.locks import work_folder


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
