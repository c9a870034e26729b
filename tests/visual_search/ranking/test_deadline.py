import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.commands import ran
from visual_search.ranking.deadline import Deadline, Effort, call_within, cheaper_efforts


class Hand:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def begun(limit: float, images: int, views: int = 1, steps: Sequence[str] = ()) -> Any:
    """A deadline for images of 224 px, and the hand of its clock."""
    hand = Hand()
    deadline = Deadline(limit, hand)
    deadline.begin(images, 224, views, steps)
    return deadline, hand


def simulated(
    limit: float,
    images: int,
    *,
    decode: float,
    model: float,
    views: int = 1,
    fixed: bool = False,
    steps: Sequence[str] = (),
) -> tuple[dict[str, Any], float]:
    """Embed in one stream, batches of 10; returns the report and the seconds it took."""
    deadline, hand = begun(limit, images, views, steps)
    for _ in range(0, images, 10):
        effort = deadline.next_effort(10, 1)
        deadline.count(effort, 10)
        if effort is None:
            continue
        share = 1.0 if fixed else (effort.size / 224) ** 2
        spent = model * share * (views if effort.copies else 1) * 10
        hand.time += decode * 10 + spent
        deadline.record(effort, 10, decode * 10, spent)
    return deadline.report(), hand.time - 100.0


def test_it_counts_down() -> None:
    hand = Hand()
    deadline = Deadline(600, hand)
    hand.time += 45
    assert deadline.spent() == 45
    assert deadline.left() == 555 - 0.03 * 600 - 0.5
    assert math.isinf(Deadline().left())


def test_sizes_fall_back_in_multiples_that_strides_and_patches_take() -> None:
    efforts = cheaper_efforts(224, False)
    assert [effort.size for effort in efforts] == [224, 196, 192, 160, 154, 128, 112]
    assert all(effort.size % 32 == 0 or effort.size % 14 == 0 for effort in efforts)
    with_views = cheaper_efforts(224, True)
    assert with_views[-1] == Effort(112, False)
    assert all(effort.copies for effort in with_views[:-1])


def test_enough_time_changes_nothing() -> None:
    report, _ = simulated(600, 1000, decode=0.002, model=0.02, views=2, steps=["pca"])
    assert report["photos_by_size"] == {"224": 1000}
    assert report["photos_without_views"] == report["photos_without_embedding"] == 0
    assert not report["reranking_skipped"]
    unlimited, _ = simulated(math.inf, 100, decode=1, model=1, steps=["pca"])
    assert unlimited["limit_seconds"] is None
    assert unlimited["reranking_reserve_seconds"] == 0


def test_resolution_goes_first_and_time_is_used_up() -> None:
    report, seconds = simulated(15, 1000, decode=0.002, model=0.02, steps=["pca", "power"])
    assert report["reranking_reserve_seconds"] == pytest.approx(0.06 * 15)
    assert 12 < seconds <= 15 - 0.06 * 15 - 0.95  # as much resolution as fits
    assert sum(report["photos_by_size"].values()) == 1000
    assert report["photos_by_size"]["224"] >= 10
    assert len(report["photos_by_size"]) > 1
    assert not report["reranking_skipped"]


def test_views_go_next_then_reranking_then_images() -> None:
    # All at 112 px: 1000 x (0.002 + 0.005) = 7 s with one view, 12 s with two.
    given: Any = {"decode": 0.002, "model": 0.02}
    report, seconds = simulated(10, 1000, views=2, steps=["dba"] * 3, **given)
    assert seconds <= 9.1
    assert report["photos_without_views"] > 300
    assert not report["reranking_skipped"]
    report, seconds = simulated(9, 1000, views=2, steps=["k_reciprocal"], **given)
    assert seconds <= 9
    assert report["reranking_skipped"]
    assert report["photos_without_embedding"] == 0
    report, seconds = simulated(3, 1000, steps=["k_reciprocal"], **given)
    assert seconds <= 3
    assert 300 < report["photos_without_embedding"] < 800


def test_the_dearer_view_goes_before_the_resolution() -> None:
    hand = Hand()
    deadline = Deadline(12, hand)
    deadline.begin(1000, 224, 2, sides=(224, 112))
    seen = []
    for _ in range(100):
        effort = deadline.next_effort(10, 1)
        assert effort is not None
        seen.append(effort)
        # Two copies; a view of 112 px costs a quarter of one of 224.
        passes = {2: 2 * 1.25, 1: 2 * min(effort.size / 224, 0.5) ** 2}[effort.views]
        hand.time += 0.08 * passes
        deadline.record(effort, 10, 0.0, 0.08 * passes)
        deadline.count(effort, 10)
    # Both views would take 20 s, the cheaper one 4.
    assert seen[0] == Effort(224, True, 2)
    assert {(effort.size, effort.views) for effort in seen} == {(224, 2), (224, 1)}
    assert 10 < hand.time - 100 < 12
    without = sum(10 for effort in seen if effort.views == 1)
    assert deadline.report()["photos_without_views"] == without > 0


def test_a_model_whose_time_ignores_the_size_still_ends_in_time() -> None:
    report, seconds = simulated(5, 1000, decode=0.0, model=0.02, fixed=True)
    assert seconds <= 5
    assert report["photos_without_embedding"] > 500


def test_a_usual_list_of_steps_leaves_the_hidden_test_its_resolution() -> None:
    """40,000 images at 7.5 ms each on 4 cores take 300 s of the 600."""
    deadline, _ = begun(600, 40_000, 1, ["power", "pca", "query_expansion", "k_reciprocal"])
    deadline.record(deadline.next_effort(4, 4), 4, 4 * 0.004, 4 * 0.026)  # in one of four streams
    assert deadline.next_effort(4, 4) == Effort(224, False)
    assert deadline.reranks


def test_a_refused_size_is_not_tried_again() -> None:
    deadline, _ = begun(10, 1000)
    first = deadline.next_effort(10, 1)
    assert first == Effort(224, False)
    deadline.record(first, 10, 0.0, 0.15)
    lower = deadline.next_effort(10, 1)
    assert lower.size < 224
    other = deadline.refused(lower, 10, 1)
    assert other.size not in (lower.size, 224)
    later = {effort.size for effort in (deadline.next_effort(10, 1) for _ in range(5)) if effort}
    assert lower.size not in later


@pytest.mark.parametrize("limit", [0.0001, 1.0])
def test_not_even_one_batch(limit: float) -> None:
    deadline, hand = begun(limit, 100)
    hand.time += 2
    assert deadline.next_effort(10, 2) is None
    deadline.skip(90)
    deadline.count(None, 100)
    assert deadline.report()["photos_without_embedding"] == 100


def test_reranking_is_left_out_when_its_time_is_gone() -> None:
    deadline, hand = begun(100, 10, 1, ["k_reciprocal"])
    hand.time += 70
    assert deadline.may_rerank()
    hand.time += 10  # 20 s are left for 20 and what it takes to answer
    assert not deadline.may_rerank()
    assert deadline.report()["reranking_skipped"]
    assert deadline.left() == deadline.left_to_embed() == 20 - 3.5


def test_a_call_has_its_seconds() -> None:
    assert call_within(math.inf, lambda: 3) == call_within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 / 0)
    started = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"not done in 0\.1 s"):
        call_within(0.1, lambda: time.sleep(3))
    assert time.perf_counter() - started < 1


def test_a_call_that_hangs_does_not_keep_the_process() -> None:
    code = (
        "import time; from visual_search.ranking.deadline import call_within\n"
        "try: call_within(0.1, lambda: time.sleep(60))\n"
        "except TimeoutError: print('late')"
    )
    assert ran(sys.executable, "-c", code, timeout=30).stdout == "late\n"
