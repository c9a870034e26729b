from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch

from visual_search.device_lane import DeviceLane, lane_of


def test_all_calls_run_in_one_thread_and_in_inference_mode() -> None:
    lane, seen = DeviceLane(), []

    def call(number: int) -> int:
        assert torch.is_inference_mode_enabled()
        seen.append(threading.get_ident())
        return number * number

    answers: dict[int, int] = {}

    def ask(number: int) -> None:
        answers[number] = lane.run(lambda: call(number))

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert answers == {number: number**2 for number in range(40)}
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


def test_what_a_call_raises_is_raised_and_the_lane_goes_on() -> None:
    lane = DeviceLane()
    with pytest.raises(ZeroDivisionError):
        lane.run(lambda: 1 / 0)
    assert lane.run(lambda: "next") == "next"


def test_a_call_that_hangs_leaves_its_place_to_another() -> None:
    lane, hung = DeviceLane(), threading.Event()
    with pytest.raises(TimeoutError):
        lane.run(hung.wait, 0.05)
    assert lane.run(lambda: "next", 5) == "next"
    hung.set()


def test_a_call_that_waits_behind_another_and_is_late_is_not_made() -> None:
    lane, release, made = DeviceLane(), threading.Event(), []
    first = threading.Thread(target=lane.run, args=(release.wait,))
    first.start()
    time.sleep(0.05)
    with pytest.raises(TimeoutError):
        lane.run(lambda: made.append(1), 0.05)
    release.set()
    first.join()
    assert lane.run(lambda: len(made), 5) == 0


def test_a_device_has_one_lane() -> None:
    assert lane_of(torch.device("meta")) is lane_of(torch.device("meta"))


def test_a_hanging_call_does_not_keep_a_process_from_its_end() -> None:
    code = (
        "import time; from visual_search.device_lane import DeviceLane\n"
        "try: DeviceLane().run(lambda: time.sleep(600), 0.1)\n"
        "except TimeoutError: print('late')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "late\n"
