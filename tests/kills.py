"""Work in processes that are killed: at the end, or at every change that it makes to the disk."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.copyfile"}


@contextmanager
def another_process(work: Callable[[], object]) -> Iterator[int]:
    """Its number; it is killed at the end where it still runs."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def sleep_on() -> None:
    """Sleep in naps: what comes right before a sleep, Python hears only after it."""
    while True:
        time.sleep(0.01)


def killed_at_each_change(work: Callable[[], object], most: int = 200) -> Iterator[int]:
    """Yield after each kill -9, the number of changes that were made before it.

    A forked process does the work from where the last one left the disk, and is killed right in
    front of a change: a renaming, a removal, a new folder, the opening of a file to write. After
    the last number it came to its end.
    """
    for allowed in range(most):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                sys.addaudithook(_killing_after(allowed))
                work()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the work failed"
            return
        yield allowed
    raise AssertionError(f"more than {most} changes")


def _killing_after(allowed: int) -> Callable[[str, tuple[object, ...]], None]:
    left = allowed

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        flags = arguments[2] if event == "open" else 0
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    return hook
