"""The stack on which signals are handled, kept over calls into libraries that exchange it.

OpenVINO gives the calling thread another signal stack each time that its CPU plugin is made, and
frees it with the plugin. Two plugins that end in the order they began leave the thread with freed
memory: the next signal that Python handles (SIGCHLD of a DataLoader, Ctrl-C) ends the process
with a segmentation fault. That happens wherever one model replaces another.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """`stack_t` of Linux (sigaltstack(2))."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


def signal_stack() -> SignalStack:
    """The calling thread's; Linux only."""
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Within it libraries may set a signal stack; afterwards the thread has its own again.

    Where the system refuses the old one, as too small for what the library has switched on in the
    meantime, the library's stays.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        if signal_stack().address != before.address:
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
