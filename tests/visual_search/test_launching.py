from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from visual_search.errors import UserError
from visual_search.launching import lacks_processes, requested_processes


def test_one_process_in_place_of_several_is_noticed() -> None:
    asked = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert lacks_processes(asked)
    assert not lacks_processes(asked | {"RANK": "0", "WORLD_SIZE": "2"})
    assert not lacks_processes(asked | {"ACCELERATE_USE_CPU": "False"})
    assert not lacks_processes({"ACCELERATE_USE_CPU": "True"})
    assert not lacks_processes({})


@pytest.mark.parametrize(
    "arguments",
    [["--num_processes", "3"], ["--num_processes=3"], ["--cpu", "--num-processes", "3", "-m", "x"]],
)
def test_the_number_is_read_from_the_launcher(arguments: list[str]) -> None:
    assert requested_processes(["accelerate", "launch", *arguments]) == 3


def test_an_unknown_number_is_a_sentence() -> None:
    with pytest.raises(UserError, match="torchrun --nproc_per_node 2"):
        requested_processes(["accelerate", "launch", "--cpu"])


def test_accelerate_launch_starts_as_many_as_asked(tmp_path: Path, project: Path) -> None:
    (tmp_path / "told.py").write_text(
        "from visual_search.launching import start_missing_processes\n"
        "start_missing_processes('told')\n"
        "from accelerate import Accelerator\n"
        "from pathlib import Path\n"
        "a = Accelerator()\n"
        "Path(f'rank{a.process_index}').write_text(str(a.num_processes))\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    options = ["--num_processes", "2", "--main_process_port", "29517", "-m", "told"]
    paths = os.pathsep.join([str(project), str(tmp_path)])
    done = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert "starting 2 with torchrun" in done.stdout
