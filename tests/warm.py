"""Real processes that start in a moment: forked from one that has loaded the libraries.

To load torch, timm and torchvision takes most of a short command's time. A server loads them once
for each worker of the test run and does nothing else, so that its children are as good as new.
"""

import atexit
import multiprocessing as mp
import os
import sys
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from tests.conftest import PROJECT
from visual_search.common.processes import PRELOADED, _run_as_main

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
    os.chdir(PROJECT)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        _run_as_main(words)


def start_python(
    *arguments: object,
    out: Path,
    err: Path | None = None,
    environment: dict[str, str] | None = None,
) -> BaseProcess:
    """A running command.

    Args:
        arguments: `-m MODULE …`, `-c CODE …` or `FILE …`, the file below the project.
        out: where stdout goes, behind what is there.
        err: where stderr goes; with stdout by default.
        environment: variables to set beside those of this process.
    """
    words, values = [str(word) for word in arguments], {**os.environ, **(environment or {})}
    process: BaseProcess = _server().Process(target=_command, args=(words, out, err or out, values))
    process.start()
    return process


def run_python(
    *arguments: object, environment: dict[str, str] | None = None, timeout: float = 200
) -> CompletedProcess[str]:
    """Run a command to its end."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start_python(*arguments, out=out, err=err, environment=environment)
        process.join(timeout)
        process.kill()
        assert process.exitcode is not None, f"{arguments} still runs after {timeout} s"
        words = list(map(str, arguments))
        return CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())
