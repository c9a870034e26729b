"""The same call in several threads at once, as it is going to run, and what it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from visual_search.device_lane import lane_of


def side_by_side(
    call: Callable[[], object],
    streams: int,
    threads: int,
    device: torch.device,
    wait: float = float("inf"),
) -> float:
    """Seconds that `streams` threads take for one call each, at the same time.

    On a GPU it is one call, in a thread of the device's own.

    Raises:
        TimeoutError: when they are not done after `wait` seconds; they are left to themselves.
    """
    if device.type == "cuda":
        return lane_of(device).run(partial(_seconds_on, device, call), wait)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            use_threads(threads)
            with torch.inference_mode():
                call()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=run, daemon=True) for _ in range(streams)]
    started = time.perf_counter()
    with threads_restored():
        for worker in workers:
            worker.start()
        for worker in workers:
            left = started + wait - time.perf_counter()
            worker.join(min(max(left, 0.0), threading.TIMEOUT_MAX))
    if any(worker.is_alive() for worker in workers):
        raise TimeoutError
    if failures:
        raise failures[0]
    return time.perf_counter() - started


def _seconds_on(device: torch.device, call: Callable[[], object]) -> float:
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


@contextmanager
def threads_restored() -> Iterator[None]:
    """Put the number of CPU threads back that operations use, whatever other threads set."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_threads(threads: int) -> None:
    """Let operations that *this* thread starts use so many CPU threads; 0 leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)
