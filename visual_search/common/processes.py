"""How many cores there are to use, and Python programs that start in a moment."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

PRELOADED = ["visual_search.phase", "visual_search.text.phase", "accelerate", "timm"]
"""Modules; where one of their packages is not installed, it is left out."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl, from <sys/prctl.h>."""


def available_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_program(words: Sequence[str]) -> int:
    """Run any program to its end, and on Linux not beyond that of this process; its exit status.

    Raises:
        FileNotFoundError: when there is none of that name.
    """
    ends_too = _ask_to_end_with_parent if sys.platform == "linux" else None
    return subprocess.run(words, check=False, preexec_fn=ends_too).returncode


def _ask_to_end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run_python(words: Sequence[str]) -> int:
    """Run `python WORDS` to its end, and not beyond that of this process; its exit status.

    On Linux it is forked from a server that has loaded :data:`PRELOADED` and does nothing else.
    To load them takes each program 8 to 10 seconds on two cores, the nine of `make demo` more than
    one minute of eight.

    Args:
        words: `-m`, a module, its arguments; or a file and its arguments.
    """
    if sys.platform != "linux":
        return run_program([sys.executable, *words])
    if multiprocessing.parent_process() is None:
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
    else:  # a program that was forked from one has them, too
        context = multiprocessing.get_context("fork")
    child = context.Process(target=_run_as_main, args=(list(words),))
    child.start()
    try:
        while child.exitcode is None:
            child.join(1)  # a signal right before this wait is heard after it
    except BaseException:
        child.terminate()  # else this process would wait for it once more at its own end
        raise
    return int(child.exitcode)


def _run_as_main(words: list[str]) -> None:
    """Run a program in this process as Python itself would."""
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Image loaders would have theirs started by the server, and load torch.
    multiprocessing.set_start_method(None, force=True)
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends without them


def _end_with_parent() -> None:
    """Wait for the process that asked for this one, and end with it, even where that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
