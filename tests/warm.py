"""Real processes that start in a moment: forked from one that has loaded the libraries.

To load torch, timm and torchvision takes most of a short command's time. A server loads them once
for each worker of the test run and does nothing else, so that its children are as good as new.
"""

import atexit
import multiprocessing as mp
import os
import runpy
import sys
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory
from typing import Any

from tests.conftest import PROJECT
from visual_search.common.processes import PRELOADED

LOADED = [*PRELOADED, "visual_search.train"]


@cache
def _server() -> ForkServerContext:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def _command(words: list[str], out: Path, err: Path, environment: dict[str, str]) -> None:
    """Run `-m MODULE …`, `-c CODE …` or `FILE …` as Python itself would."""
    atexit._clear()  # of the process that it was forked from
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    mp.set_start_method("fork", force=True)  # as of a process that was started anew
    os.chdir(PROJECT)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, str(PROJECT))
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, str(PROJECT))
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str((PROJECT / words[0]).parent))
            runpy.run_path(str(PROJECT / words[0]), run_name="__main__")
    finally:
        atexit._run_exitfuncs()


class PythonProcess:
    """A running command, as `subprocess.Popen` would have it.

    Args:
        arguments: `-m MODULE …`, `-c CODE …` or `FILE …`, the file below the project.
        out: where stdout goes, behind what is there.
        err: where stderr goes; with stdout by default.
        from_here: forked from this very process: at once, for what needs no thread of torch's.
        environment: variables to set beside those of this process.
    """

    def __init__(
        self,
        *arguments: object,
        out: Path,
        err: Path | None = None,
        environment: dict[str, str] | None = None,
        from_here: bool = False,
    ) -> None:
        self.words = [str(word) for word in arguments]
        values = {**os.environ, **(environment or {})}
        context: Any = mp.get_context("fork") if from_here else _server()
        self._process = context.Process(target=_command, args=(self.words, out, err or out, values))
        self._process.start()

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 200) -> int:
        """The exit status."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutExpired(self.words, timeout)
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()


def run_python(
    *arguments: object,
    environment: dict[str, str] | None = None,
    timeout: float = 200,
) -> CompletedProcess[str]:
    """Run a command to its end."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        command = PythonProcess(*arguments, out=out, err=err, environment=environment)
        status = command.wait(timeout)
        return CompletedProcess(command.words, status, out.read_text(), err.read_text())
