from __future__ import annotations

from collections.abc import Callable

import pytest

from visual_search.capacity import Prediction, Run, StageSeconds, Workload
from visual_search.largest_size import Bounds, LargestSize, OtherSizeFailed, find_largest_size

TEST = Workload(14_000, 26_000)
SAMPLE = Workload(100, 100)


def measured(size: int | None, seconds: float, memory: int = 10**9) -> Run:
    return Run(size, SAMPLE, StageSeconds(seconds + 1, 1, seconds, 0), memory)


def search(
    cost: Callable[[int], float],
    limit: float,
    memory: Callable[[int], int] = lambda size: 10**9,
    size: int = 224,
) -> tuple[LargestSize, list[int]]:
    """Find the largest size of a machine that takes `cost(size)` seconds an image."""
    ran: list[int] = []

    def run_sample(size: int) -> Run:
        ran.append(size)
        return measured(size, cost(size) * SAMPLE.images, memory(size))

    base = Prediction(10.0, cost(size) * TEST.images, 20.0, 0.0, memory(size))
    own = measured(size, cost(size) * SAMPLE.images, memory(size))
    bounds = Bounds(TEST, limit, 4 * 10**9, 1.0)
    return find_largest_size(run_sample, base, own, bounds, lambda step: None), ran


def test_the_largest_that_fits_is_found_and_was_run() -> None:
    def cost(size: int) -> float:
        return 0.002 + 2e-7 * size**2

    found, ran = search(cost, 600)
    # 510 s are left for 40,000 photos, 12.75 ms each: 231 px, so 224 and not 256.
    assert found.input_size == 224
    assert ran == [128, 320]
    found, ran = search(cost, 2000)
    assert found.input_size == 448
    assert ran[-1] == 448
    verified = next(trial for trial in found.trials if trial.input_size == 448)
    assert verified.fits
    assert verified.prediction.seconds <= 0.9 * 2000


def test_a_fit_that_promised_too_much_is_taken_back() -> None:
    """Above 400 px this machine is much slower than its squares: a cache that overflows."""

    def cost(size: int) -> float:
        return 0.002 + 2e-7 * size**2 * (3 if size > 400 else 1)

    found, ran = search(cost, 2000)
    assert ran[2:] == [448, 384]
    # 44.25 ms an image are left: 384 px would take 31.5 ms, 416 px 105.8 ms.
    assert found.input_size == 384


def test_a_model_that_is_too_slow_gets_a_smaller_size_or_none() -> None:
    found, _ = search(lambda size: 0.001 + 1e-6 * size**2, 600)
    assert found.input_size == 96  # 108.4 px by the formula
    found, _ = search(lambda size: 0.1, 600)
    assert found.input_size is None
    assert found.reason is not None
    assert "smaller model" in found.reason


def test_memory_counts_as_well() -> None:
    found, _ = search(lambda size: 1e-8 * size**2, 6000, lambda size: 10**9 + 20_000 * size**2)
    assert found.input_size is not None
    assert 10**9 + 20_000 * found.input_size**2 <= 0.9 * 4 * 10**9
    assert found.input_size >= 320


def test_a_model_of_one_size() -> None:
    def refuse(size: int) -> Run:
        raise OtherSizeFailed("it takes 224 px only")

    bounds = Bounds(TEST, 600, 4 * 10**9, 1.0)
    base = Prediction(10, 300, 20, 0, 10**9)
    found = find_largest_size(refuse, base, measured(224, 1.5), bounds, lambda step: None)
    assert found.input_size == 224
    assert found.reason == "another size cannot be had: it takes 224 px only"
    silent = find_largest_size(refuse, base, measured(None, 1.5), bounds, lambda step: None)
    assert silent.input_size is None
    deaf = find_largest_size(
        lambda size: measured(224, 1.5), base, measured(224, 1.5), bounds, lambda step: None
    )
    assert deaf.input_size == 224
    assert deaf.reason is not None
    assert "VISUAL_SEARCH_INPUT_SIZE" in deaf.reason


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_fewer_cores_than_there_count_for_less(share: float) -> None:
    per_image = 0.01
    base = Prediction(0, per_image * TEST.images * share, 0, 0, 10**9)
    bounds = Bounds(TEST, 450, 4 * 10**9, share)
    found = find_largest_size(
        lambda size: measured(size, per_image * (size / 224) ** 2 * SAMPLE.images),
        base,
        measured(224, per_image * SAMPLE.images),
        bounds,
        lambda step: None,
    )
    # 405 s for 40,000 photos: 10.1 ms each there, and so 20.2 ms here on half of the cores.
    assert found.input_size == (224 if share == 1 else 288)
