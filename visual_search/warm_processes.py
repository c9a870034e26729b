"""Commands in processes of their own that start with their libraries loaded.

Loading torch and what stands on it takes longer than a small phase trains. One process loads it
once and forks for each command, which then has a process of its own as before: its memory goes
back when it ends, and one that is killed takes nothing with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

LOADED, FRESH = "loaded", "fresh"
"""What the process that forks says first: it has loaded all, or it must not fork here."""


class WarmProcesses:
    """Runs modules as `python -m` does, one after the other; a context manager.

    Where forking a process with loaded libraries is not safe (not on Linux, or beside an
    accelerator, whose driver does not survive it), and where they cannot be loaded, each command
    is started anew.

    Args:
        modules: to load; nothing is before the first command.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = list(modules)
        self._host: subprocess.Popen[str] | None = None
        self._answers: IO[str] | None = None
        self._can_fork = sys.platform == "linux"

    def __enter__(self) -> WarmProcesses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, module: str, arguments: Sequence[str]) -> int:
        """Run `python -m module arguments` and wait for it.

        Returns:
            Its exit status; of one that a signal ended, minus the signal's number.
        """
        if self._can_fork and self._host is None:
            self._start()
        if self._host is None or self._answers is None or self._host.stdin is None:
            return subprocess.run(
                [sys.executable, "-m", module, *arguments], check=False
            ).returncode
        answer = ""
        with suppress(BrokenPipeError):
            self._host.stdin.write(json.dumps([module, *arguments]) + "\n")
            self._host.stdin.flush()
            answer = self._answers.readline()
        if answer:
            return int(answer)
        # It was killed, and nothing is known of the command.
        return self._end() or 1

    def _start(self) -> None:
        reading, writing = os.pipe()
        command = [sys.executable, "-m", __name__, str(writing), *self._modules]
        self._host = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[writing], text=True, encoding="utf-8"
        )
        os.close(writing)
        self._answers = os.fdopen(reading, encoding="utf-8")
        if self._answers.readline().strip() != LOADED:
            self._can_fork = False
            self._end()

    def _end(self) -> int:
        host, self._host = self._host, None
        if self._answers is not None:
            self._answers.close()
        if host is None or host.stdin is None:
            return 0
        with suppress(BrokenPipeError):
            host.stdin.close()
        return host.wait()


def main() -> None:
    """Load the modules that are named, then fork for each command that stdin brings."""
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    # A chain that Ctrl-C stops closes stdin, which ends this process; commands hear it as ever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # nothing that is loaded is garbage
    try:
        for module in sys.argv[2:]:
            importlib.import_module(module)
    except ImportError:
        print(FRESH, file=answers, flush=True)  # the command itself says what is missing
        return
    # Collecting garbage would write to all that is loaded: copies of it, and a second at each end.
    gc.freeze()
    gc.enable()
    print(FRESH if _beside_an_accelerator() else LOADED, file=answers, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answers.close()
            _become(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _beside_an_accelerator() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.accelerator.is_available()


def _become(command: Sequence[str]) -> None:
    """Be the process of a command, until the interpreter ends as it does for any."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
