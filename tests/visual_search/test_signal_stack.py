"""Signals are handled on the thread's own stack whatever a library has done."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from visual_search.signal_stack import SignalStack, signal_stack, signal_stack_kept

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")

# Two models of which the first ends first; then a child's end is handled in Python.
CHILD = """
import faulthandler, os, signal, subprocess, sys
import openvino
import openvino.opset13 as ops
from visual_search.signal_stack import signal_stack_kept

faulthandler.enable()
handled = []
signal.signal(signal.SIGCHLD, lambda *_: handled.append(1))
room = ops.parameter([1, 4], openvino.Type.f32)
network = openvino.Model([ops.relu(room)], [room])
with signal_stack_kept():
    first = openvino.Core().compile_model(network, "CPU")
    second = openvino.Core().compile_model(network, "CPU")
del first
del second
subprocess.run(["true"])
assert handled
print("alive")
"""


def test_a_stack_that_was_exchanged_is_put_back() -> None:
    room = ctypes.create_string_buffer(1 << 16)
    before = signal_stack()
    with signal_stack_kept():
        other = SignalStack(ctypes.addressof(room), 0, len(room))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert signal_stack().address == ctypes.addressof(room)
    after = signal_stack()
    assert (after.address, after.size) == (before.address, before.size)


def test_signals_are_handled_after_two_models_of_openvino() -> None:
    pytest.importorskip("openvino", reason="needs the extra [fast]")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "alive\n", (done.returncode, done.stderr)
