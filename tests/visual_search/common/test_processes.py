"""A program in a forked process does what it does in one that is started anew."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ran
from tests.conftest import PROJECT
from tests.kills import wait_for

DRIVER = """
import sys
from visual_search.common import processes
from visual_search.common.errors import run_command
if __name__ == "__main__":
    processes.PRELOADED = ["json"]
    run_command(lambda: sys.exit(processes.run_python(sys.argv[1:])))
"""
PROGRAM = """
import atexit, multiprocessing, os, signal, sys, beside
atexit.register(print, "cleaned up")
print(__name__, sys.argv[1:], beside.VALUE, multiprocessing.get_start_method())
"""


def started(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(PROJECT)}
    return ran(sys.executable, *words, cwd=folder, env=environment, stdin=subprocess.DEVNULL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "beside.py").write_text("VALUE = 5\n")
    return tmp_path


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "sys.exit('said at the end')",
        "1 / 0",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
@pytest.mark.parametrize("way", [["tools/program.py"], ["-m", "program"]])
def test_it_prints_and_ends_as_if_started_anew(folder: Path, end: str, way: list[str]) -> None:
    (folder / "tools" / "program.py").write_text(PROGRAM + end)
    (folder / "program.py").write_text(PROGRAM.replace("beside", "tools.beside") + end)
    anew = started(folder, *way, "--a", "b c")
    for driver in (["driver.py"], ["driver.py", "driver.py"]):  # and by one that was forked itself
        forked = started(folder, *driver, *way, "--a", "b c")
        assert forked.stdout == anew.stdout
        assert forked.returncode % 256 == anew.returncode % 256
        assert ("ZeroDivisionError" in forked.stderr) == (end == "1 / 0")
        assert ("said at the end" in forked.stderr) == ("said" in end)


BUSY = """
import os, signal, threading, time, torch
from visual_search.common.errors import run_command
def work():
    layer, pixels = torch.nn.Conv2d(3, 16, 3), torch.rand(2, 3, 64, 64)
    while True:
        layer(pixels)
def main():
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    print("at work")
    {end}
run_command(main)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("pass", 0),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)", 143),
    ],
)
def test_threads_in_a_model_do_not_spoil_the_end(folder: Path, end: str, status: int) -> None:
    done = started(folder, "-c", BUSY.format(end=end))
    assert (done.stdout, done.returncode) == ("at work\n", status), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is a subprocess")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("driver", [["driver.py"], ["driver.py", "driver.py"]])
def test_it_ends_with_the_process_that_asked_for_it(
    folder: Path, driver: list[str], how: signal.Signals
) -> None:
    (folder / "endless.py").write_text(
        "import os, pathlib, time\n"
        "from visual_search.common.errors import run_command\n"
        "pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "def nap():\n"
        "    while True: time.sleep(0.01)\n"
        "run_command(nap)\n"
    )
    with subprocess.Popen([sys.executable, *driver, "endless.py"], cwd=folder) as asking:
        wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
        asking.send_signal(how)
        assert asking.wait(20) != 0
    child = Path("/proc", (folder / "pid").read_text(), "stat")
    wait_for(lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z")
