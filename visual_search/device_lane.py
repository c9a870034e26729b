"""The threads from which a CUDA device is used: few, and always the same.

cuDNN and cuBLAS set up a handle and a workspace for every thread that calls them, which takes a
fifth of a second each. What is measured in a new thread is mostly that, and what is embedded in
one thread for each core pays it once for each core.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

# While one waits for its answer, the kernels of the other are queued behind it.
LANE_THREADS = 2

Answer = TypeVar("Answer")


class DeviceLane:
    """Runs calls in threads of its own, in inference mode, first come, first served."""

    def __init__(self, threads: int = LANE_THREADS) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        for _ in range(threads):
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
            call: has the device for as long as it runs.
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
