from __future__ import annotations

import math

import pytest

from visual_search.clock import Clock, Pacer, Step, fallback_steps


class Hand:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def simulated(
    limit: float,
    photos: int,
    *,
    decode: float,
    model: float,
    views: int = 1,
    fixed: bool = False,
    **reserves: float,
) -> tuple[Pacer, float]:
    """Embed in one stream, batches of 10; returns the pacer and the seconds it took."""
    hand = Hand()
    pacer = Pacer(Clock(limit, hand), photos, 224, views, **reserves)
    for _ in range(0, photos, 10):
        step = pacer.next(10, 1)
        pacer.count(step, 10)
        if step is None:
            continue
        share = 1.0 if fixed else (step.size / 224) ** 2
        spent = model * share * (views if step.views else 1) * 10
        hand.time += decode * 10 + spent
        pacer.record(step, 10, decode * 10, spent)
    return pacer, hand.time - 100.0


def test_a_clock_counts_down() -> None:
    hand = Hand()
    clock = Clock(600, hand)
    hand.time += 45
    assert (clock.spent(), clock.left()) == (45, 555)
    assert math.isinf(Clock().left())


def test_sizes_fall_back_in_multiples_that_strides_and_patches_take() -> None:
    steps = fallback_steps(224, False)
    assert [step.size for step in steps] == [224, 196, 192, 160, 154, 128, 112]
    assert all(step.size % 32 == 0 or step.size % 14 == 0 for step in steps)
    with_views = fallback_steps(224, True)
    assert with_views[-1] == Step(112, False)
    assert all(step.views for step in with_views[:-1])


def test_enough_time_changes_nothing() -> None:
    pacer, _ = simulated(600, 1000, decode=0.002, model=0.02, views=2, reranking=20)
    report = pacer.report()
    assert report["photos_by_size"] == {"224": 1000}
    assert report["photos_without_views"] == report["photos_without_embedding"] == 0
    assert not report["reranking_skipped"]
    unlimited, _ = simulated(math.inf, 100, decode=1, model=1)
    assert unlimited.report()["limit_seconds"] is None


def test_resolution_goes_first_and_time_is_used_up() -> None:
    pacer, seconds = simulated(15, 1000, decode=0.002, model=0.02, ranking=0.5, reranking=1.0)
    report = pacer.report()
    assert seconds <= 15 - 0.5 - 1.0
    assert seconds > 12  # as much resolution as fits
    assert sum(report["photos_by_size"].values()) == 1000
    assert report["photos_by_size"]["224"] >= 10
    assert len(report["photos_by_size"]) > 1
    assert not report["reranking_skipped"]


def test_views_go_next_then_reranking_then_photos() -> None:
    # All at 112 px: 1000 x (0.002 + 0.005) = 7 s with one view, 12 s with two.
    pacer, seconds = simulated(10, 1000, decode=0.002, model=0.02, views=2, reranking=1.0)
    report = pacer.report()
    assert seconds <= 9
    assert report["photos_without_views"] > 300
    assert not report["reranking_skipped"]
    pacer, seconds = simulated(9, 1000, decode=0.002, model=0.02, views=2, reranking=2.0)
    report = pacer.report()
    assert seconds <= 9
    assert report["reranking_skipped"]
    assert report["photos_without_embedding"] == 0
    pacer, seconds = simulated(3, 1000, decode=0.002, model=0.02, reranking=1.0)
    report = pacer.report()
    assert seconds <= 3
    assert 300 < report["photos_without_embedding"] < 800


def test_a_model_whose_time_ignores_the_size_still_ends_in_time() -> None:
    pacer, seconds = simulated(5, 1000, decode=0.0, model=0.02, fixed=True)
    assert seconds <= 5
    assert pacer.report()["photos_without_embedding"] > 500


def test_a_refused_size_is_not_tried_again() -> None:
    hand = Hand()
    pacer = Pacer(Clock(10, hand), 1000, 224)
    first = pacer.next(10, 1)
    assert first == Step(224, False)
    pacer.record(first, 10, 0.0, 0.15)
    lower = pacer.next(10, 1)
    assert lower is not None
    assert lower.size < 224
    other = pacer.refused(lower, 10, 1)
    assert other is not None
    assert other.size not in (lower.size, 224)
    assert lower.size not in {step.size for step in (pacer.next(10, 1) for _ in range(5)) if step}


@pytest.mark.parametrize("limit", [0.0001, 1.0])
def test_not_even_one_batch(limit: float) -> None:
    hand = Hand()
    pacer = Pacer(Clock(limit, hand), 100, 224)
    hand.time += 2
    assert pacer.next(10, 2) is None
    pacer.leave_out(100, 90)
    assert pacer.report()["photos_without_embedding"] == 100


def test_reranking_is_left_out_when_its_time_is_gone() -> None:
    hand = Hand()
    pacer = Pacer(Clock(100, hand), 10, 224, ranking=5, reranking=20)
    hand.time += 70
    assert pacer.may_rerank()
    hand.time += 10  # 20 s are left for 25 and the safety
    assert not pacer.may_rerank()
    assert pacer.report()["reranking_skipped"]
    assert pacer.reserve() < 10
