"""Commands in forks of a loaded process, against the same commands started anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from visual_search.warm_processes import WarmProcesses

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks on Linux alone")

LIBRARY = "import os\nloaded_by = os.getpid()\n"
COMMAND = """
import atexit, json, os, pathlib, signal, sys
loaded = "a_library" in sys.modules
import a_library
import multiprocessing

def double(number):
    return 2 * number

if __name__ == "__main__":
    name, action = sys.argv[1:]
    here = pathlib.Path(__file__).parent
    atexit.register((here / f"{name}.ended").touch)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        doubled = pool.map(double, [1, 2])
    facts = {"loaded": loaded, "pid": os.getpid(), "parent": os.getppid(), "cwd": os.getcwd(),
             "library": a_library.loaded_by, "stdin": sys.stdin.read(), "doubled": doubled}
    (here / f"{name}.json").write_text(json.dumps(facts))
    print("said by", name)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "kill host":
        os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(int(action) if action.isdigit() else 0)
"""
INTERRUPTED = """
import pathlib, signal, sys, time
try:
    (pathlib.Path(__file__).parent / "sleeps").touch()
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a_library.py").write_text(LIBRARY)
    (tmp_path / "a_command.py").write_text(COMMAND)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    return tmp_path


def facts(place: Path, name: str) -> dict[str, Any]:
    assert (place / f"{name}.ended").exists()
    found: dict[str, Any] = json.loads((place / f"{name}.json").read_text())
    return found


def test_each_command_is_a_process_of_its_own_with_its_libraries_loaded(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with WarmProcesses(["a_library"]) as processes:
        assert processes.run("a_command", ["one", "-"]) == 0
        assert processes.run("a_command", ["two", "-"]) == 0
    one, two = facts(place, "one"), facts(place, "two")
    assert one["loaded"]
    assert two["loaded"]
    assert one["library"] == two["library"] == one["parent"] == two["parent"]
    assert len({one["pid"], two["pid"], one["parent"], os.getpid()}) == 4
    assert (one["stdin"], one["doubled"], one["cwd"]) == ("", [2, 4], os.getcwd())
    assert capfd.readouterr().out.split("\n")[:2] == ["said by one", "said by two"]


def test_exit_statuses_are_those_of_a_process_started_anew(place: Path) -> None:
    with WarmProcesses(["a_library"]) as processes:
        assert processes.run("a_command", ["one", "3"]) == 3
        assert processes.run("a_command", ["two", "kill"]) == -signal.SIGKILL
        assert processes.run("no_such_command", []) == 1
        assert processes.run("a_command", ["three", "-"]) == 0
    assert facts(place, "three")["loaded"]


@pytest.mark.parametrize(
    "library",
    [
        "import a_package_that_is_missing",
        "import torch; torch.accelerator.is_available = lambda: 1",
    ],
)
def test_where_it_must_not_fork_commands_are_started_anew(place: Path, library: str) -> None:
    (place / "another.py").write_text(library)
    with WarmProcesses(["another"]) as processes:
        assert processes.run("a_command", ["one", "5"]) == 5
        assert processes.run("a_command", ["two", "-"]) == 0
    for name in ("one", "two"):
        assert facts(place, name)["parent"] == os.getpid()
        assert not facts(place, name)["loaded"]


def test_when_the_loaded_process_is_killed_the_next_command_has_a_new_one(place: Path) -> None:
    with WarmProcesses(["a_library"]) as processes:
        assert processes.run("a_command", ["one", "kill host"]) == -signal.SIGKILL
        assert processes.run("a_command", ["two", "-"]) == 0
    assert facts(place, "two")["loaded"]


def test_ctrl_c_reaches_the_command_and_nothing_stays(place: Path) -> None:
    (place / "sleeper.py").write_text(INTERRUPTED)
    (place / "chain.py").write_text(
        "from visual_search.warm_processes import WarmProcesses\n"
        "with WarmProcesses(['a_library']) as processes:\n"
        "    processes.run('sleeper', [])\n"
    )
    chain = subprocess.Popen(
        [sys.executable, str(place / "chain.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (place / "sleeps").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(chain.pid, signal.SIGINT)
    printed, _ = chain.communicate(timeout=30)
    assert printed == "interrupted\n"
    with pytest.raises(ProcessLookupError):
        os.killpg(chain.pid, 0)
