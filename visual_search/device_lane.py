"""The thread from which a CUDA device is used: always the same.

cuDNN and cuBLAS set up handles, workspaces and plans for every thread that calls them, and cuDNN
compiles some kernels, such as half-precision depthwise convolutions, for each plan: seconds for
every shape of a batch. What is measured in a new thread is mostly that, and what is embedded in
one thread for each core pays it once for each core.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

Answer = TypeVar("Answer")


class DeviceLane:
    """Runs calls in a thread of its own, in inference mode, first come, first served."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        self._start()

    def _start(self) -> None:
        # A daemon: a call that hangs in a driver must not keep the process from its end.
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            call, future = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                with torch.inference_mode():
                    future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del call, future  # or a batch stays on the device until the next one comes

    def run(self, call: Callable[[], Answer], wait: float = float("inf")) -> Answer:
        """What `call` returns or raises.

        Args:
            call: starts work on the device; whoever asked waits for the work itself, so that the
                next call's is queued behind it.
            wait: seconds.

        Raises:
            TimeoutError: when it is not done by then; it is left to itself, and another thread
                takes its place.
        """
        future: Future[Answer] = Future()
        self._calls.put((call, future))
        try:
            return future.result(min(wait, threading.TIMEOUT_MAX))
        except TimeoutError:
            if not future.done() and not future.cancel():
                self._start()
            raise


_lanes: dict[torch.device, DeviceLane] = {}
_lanes_lock = threading.Lock()


def lane_of(device: torch.device) -> DeviceLane:
    """The lane of a device in this process."""
    with _lanes_lock:
        if device not in _lanes:
            _lanes[device] = DeviceLane()
        return _lanes[device]
