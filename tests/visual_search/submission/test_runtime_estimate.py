from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visual_search.common.errors import UserError
from visual_search.submission.runtime_estimate import (
    EMBEDDING_ROW,
    HIDDEN_TEST,
    RANKS_ROW,
    ImageCounts,
    LargestSize,
    Run,
    dry_counts,
    find_largest_size,
    fits,
    predict,
)
from visual_search.submission.sandbox import Limits

SAMPLE = ImageCounts(100, 100)


def run(
    queries: int,
    gallery: int,
    embedding: float,
    *,
    ranking: float = 0.5,
    reranking: float = 0.0,
    memory: int = 10**9,
) -> Run:
    return Run(224, ImageCounts(queries, gallery), memory, 2.0, embedding, ranking, reranking)


def test_a_worked_example() -> None:
    # 1,000 images in 40 s; 240,000 similarities in 0.5 s; re-ranking 1000 x 600 in 3 s.
    measured = run(400, 600, 40.0, ranking=0.5, reranking=3.0)
    expected = predict(measured, HIDDEN_TEST)
    assert expected.loading == 2.0
    assert expected.embedding == pytest.approx(40 * 40)
    assert expected.ranking == pytest.approx(0.5 * 14_000 * 26_000 / (400 * 600))
    assert expected.reranking == pytest.approx(3 * 40_000 * 26_000 / (1000 * 600))
    assert expected.seconds == pytest.approx(2 + 1600 + expected.ranking + expected.reranking)
    assert expected.peak_memory == 10**9 + EMBEDDING_ROW * 39_000 + RANKS_ROW * 13_600
    halved = predict(measured, HIDDEN_TEST, core_share=0.5)
    assert (halved.loading, halved.embedding) == (2.0, pytest.approx(800))
    kept = replace(measured, rerank_reserve=2 * expected.reranking)
    assert predict(kept, HIDDEN_TEST).reranking == pytest.approx(2 * expected.reranking)
    assert not fits(expected, Limits(1600))
    assert fits(halved, Limits(4000))
    assert not fits(halved, Limits(4000, memory=10**9))
    assert not fits(halved, Limits(1.05 * halved.seconds), 0.9)


def test_slow_first_batches_are_not_counted_for_every_image() -> None:
    # 5 s of warm-up, then 25 images a second.
    expected = predict(run(500, 500, 5 + 40), HIDDEN_TEST, smaller=run(100, 100, 5 + 8))
    assert expected.embedding == pytest.approx(40_000 / 25)
    assert expected.loading == pytest.approx(2 + 5)


def test_ranking_and_memory_come_from_the_dry_run() -> None:
    whole = run(500, 500, 40, ranking=0.1, memory=2 * 10**9)
    dry = run(7_000, 13_000, 30, ranking=4.0, memory=3 * 10**9)
    expected = predict(whole, HIDDEN_TEST, dry=dry)
    assert expected.ranking == pytest.approx(16.0)  # four times the similarities
    assert expected.embedding == pytest.approx(1600)
    assert expected.peak_memory == 3 * 10**9 + EMBEDDING_ROW * 20_000 + RANKS_ROW * 7_000


def test_a_dry_run_is_no_longer_than_it_may_be() -> None:
    assert dry_counts(run(500, 500, 10), HIDDEN_TEST) == HIDDEN_TEST
    slow = dry_counts(run(500, 500, 1000), HIDDEN_TEST)
    assert slow.gallery == pytest.approx(4000, abs=26)
    assert slow.queries / slow.gallery == pytest.approx(14 / 26, rel=0.01)
    assert dry_counts(run(5, 5, 1000), ImageCounts(10, 20)) == ImageCounts(10, 20)


def test_what_the_log_does_not_say_is_loading_or_embedding() -> None:
    said = {"loading": 1.2, "decode": 3.0, "embedding": 6.0, "ranking": 0.5, "reranking": 2.0}
    log = {"seconds": said, "input_size": 224, "clock": {"reranking_reserve_seconds": 9.0}}
    full = Run.from_log(log, SAMPLE, 10.0, 5)
    assert full == Run(224, SAMPLE, 5, 1.5, 6.0, 0.5, 2.0, 3.0, rerank_reserve=9.0)
    assert Run.from_log({}, SAMPLE, 10.0, 5) == Run(None, SAMPLE, 5, 0.0, 10.0)


Cost = Callable[[int], float]


def search(
    cost: Cost, limit: float, memory: Cost = lambda size: 1e9, share: float = 1.0
) -> tuple[LargestSize, list[int]]:
    """Find the largest size of a machine that takes `cost(size)` seconds an image, from 224 px."""
    ran: list[int] = []

    def measure(size: int) -> Run:
        ran.append(size)
        seconds = cost(size) * SAMPLE.total
        return Run(size, SAMPLE, int(memory(size)), 1, seconds)

    sample = measure(224)
    embedding = cost(224) * HIDDEN_TEST.total * share
    base = Run(224, HIDDEN_TEST, sample.peak_memory, 10.0, embedding, 20.0)
    limits = Limits(limit, memory=4 * 10**9)
    return find_largest_size(measure, base, sample, limits), ran[1:]


def by_pixels(size: int) -> float:
    return 0.002 + 2e-7 * size**2


@pytest.mark.parametrize(
    ("cost", "limit", "expected", "ran"),
    [
        # 510 s are left for 40,000 images, 12.75 ms each: 231 px, so 224 and not 256.
        (by_pixels, 600, 224, [256]),
        # 44.25 ms each: 429 px if all grew as the pixels do, 459 px as it is.
        (by_pixels, 2000, 448, [416, 448]),
        # Above 400 px three times slower than its squares, as a cache overflows: 384 px would take
        # 31.5 ms and 416 px 105.8 ms.
        (
            lambda s: 0.002 + 2e-7 * s**2 * (3 if s > 400 else 1),
            *(2000, 384, [416, 320, 352, 384]),
        ),
        (lambda s: 0.001 + 1e-6 * s**2, 600, 96, [96]),  # 108.4 px by the formula
        (lambda s: 1e-5, 600, 1024, [1024]),
        (lambda s: 0.1, 600, None, [64]),
        (lambda s: 1e-4 * s**2, 600, None, []),  # nothing above 11 px
    ],
)
def test_what_the_line_promises_is_run(
    cost: Cost, limit: float, expected: int | None, ran: list[int]
) -> None:
    found, measured = search(cost, limit)
    assert found.input_size == expected
    assert measured == ran
    assert [trial.input_size for trial in found.trials] == sorted([224, *ran])
    for trial in found.trials:
        seconds = 30 + cost(trial.input_size or 0) * HIDDEN_TEST.total
        assert trial.seconds == pytest.approx(seconds)
        assert fits(trial, Limits(limit), 0.9) == (seconds <= 0.9 * limit)
    if expected is None:
        assert "smaller model" in str(found.reason)


@given(st.floats(0, 0.1), st.floats(1e-8, 1e-5), st.floats(300, 5000))
def test_where_the_cost_is_a_line_the_largest_of_all_sizes_is_found(
    fixed: float, square: float, limit: float
) -> None:
    def cost(size: int) -> float:
        return fixed + square * size**2

    left = (0.9 * limit - 30) / HIDDEN_TEST.total
    fitting = [size for size in range(32, 1025, 32) if cost(size) <= left * (1 - 1e-6)]
    border = [size for size in range(32, 1025, 32) if cost(size) <= left * (1 + 1e-6)]
    found = search(cost, limit)[0].input_size
    assert found in {max(fitting, default=None), max(border, default=None)}


def test_memory_counts_as_well() -> None:
    found, _ = search(lambda size: 1e-8 * size**2, 6000, lambda size: 1e9 + 20_000 * size**2)
    assert found.input_size is not None
    assert 10**9 + 20_000 * found.input_size**2 <= 0.9 * 4 * 10**9
    assert found.input_size >= 320


def test_fewer_cores_than_there_count_for_less() -> None:
    # 405 s for 40,000 images, 30 of them lost: 9.4 ms each there, 18.7 ms here on half the cores.
    found, _ = search(lambda size: 0.0093 * (size / 224) ** 2, 450, share=0.5)
    assert found.input_size == 288


@pytest.mark.parametrize(
    ("own", "other", "expected", "reason"),
    [
        (224, None, 224, "another size cannot be had: it takes 224 px only"),
        (224, 224, 224, "VISUAL_SEARCH_INPUT_SIZE"),
        (None, None, None, "names no input size"),
    ],
)
def test_a_model_of_one_size(
    own: int | None, other: int | None, expected: int | None, reason: str
) -> None:
    def measure(size: int) -> Run:
        if other is None:
            raise UserError("it takes 224 px only")
        return sample

    sample = Run(own, SAMPLE, 10**9, 1, 1.5)
    found = find_largest_size(measure, Run(own, HIDDEN_TEST, 10**9, 10, 300, 20), sample, Limits())
    assert found.input_size == expected
    assert reason in str(found.reason)
