from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visual_search.capacity import (
    EMBEDDING_ROW,
    RANKS_ROW,
    Run,
    StageSeconds,
    Workload,
    dry_workload,
    fit_size_cost,
    largest_size,
    predict,
    probe_sizes,
    stage_seconds,
)

TEST = Workload(14_000, 26_000)


def run(
    queries: int,
    gallery: int,
    embedding: float,
    *,
    loading: float = 2.0,
    ranking: float = 0.5,
    reranking: float | None = None,
    memory: int = 10**9,
    size: int = 224,
) -> Run:
    total = loading + embedding + ranking + (reranking or 0)
    seconds = StageSeconds(total, loading, embedding, ranking, None, reranking)
    return Run(size, Workload(queries, gallery), seconds, memory)


def test_a_worked_example() -> None:
    # 1,000 photos in 40 s; 400,000 similarities in 0.5 s; re-ranking 1000 x 600 in 3 s.
    measured = run(400, 600, 40.0, ranking=0.5, reranking=3.0)
    expected = predict(measured, TEST)
    assert expected.loading == 2.0
    assert expected.embedding == pytest.approx(40 * 40)
    assert expected.ranking == pytest.approx(0.5 * 14_000 * 26_000 / (400 * 600))
    assert expected.reranking == pytest.approx(3 * 40_000 * 26_000 / (1000 * 600))
    assert expected.seconds == pytest.approx(2 + 1600 + expected.ranking + expected.reranking)
    assert expected.memory == 10**9 + EMBEDDING_ROW * 39_000 + RANKS_ROW * 13_600
    halved = predict(measured, TEST, core_share=0.5)
    assert (halved.loading, halved.embedding) == (2.0, pytest.approx(800))
    assert not expected.fits(1600, 16 * 10**9)
    assert halved.fits(4000, 16 * 10**9, 1.0)
    assert not halved.fits(4000, 10**9, 1.0)


def test_slow_first_batches_are_not_counted_for_every_photo() -> None:
    # 5 s of warm-up, then 25 photos a second.
    whole, sample = run(500, 500, 5 + 40), run(100, 100, 5 + 8)
    expected = predict(whole, TEST, smaller=sample)
    assert expected.embedding == pytest.approx(40_000 / 25)
    assert expected.loading == pytest.approx(2 + 5)


def test_ranking_and_memory_come_from_the_dry_run() -> None:
    whole = run(500, 500, 40, ranking=0.1, memory=2 * 10**9)
    dry = run(7_000, 13_000, 30, ranking=4.0, memory=3 * 10**9, size=32)
    expected = predict(whole, TEST, dry=dry)
    assert expected.ranking == pytest.approx(16.0)  # four times the similarities
    assert expected.embedding == pytest.approx(1600)
    assert expected.memory == 3 * 10**9 + EMBEDDING_ROW * 20_000 + RANKS_ROW * 7_000


@given(
    fixed=st.floats(0, 0.1),
    square=st.floats(0, 1e-5),
    sizes=st.lists(st.integers(1, 32).map(lambda n: 32 * n), min_size=2, max_size=5, unique=True),
)
def test_the_fit_finds_what_made_the_figures(fixed: float, square: float, sizes: list[int]) -> None:
    cost = fit_size_cost(sizes, [fixed + square * size**2 for size in sizes])
    for size in (32, 224, 1024):
        assert cost.at(size) == pytest.approx(fixed + square * size**2, rel=1e-4, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 32), st.floats(1e-4, 1.0)), min_size=2, max_size=6))
def test_no_fit_has_a_negative_part(figures: list[tuple[int, float]]) -> None:
    sizes = [32 * n for n, _ in figures]
    if len(set(sizes)) < 2:
        with pytest.raises(ValueError, match="two different sizes"):
            fit_size_cost(sizes, [y for _, y in figures])
        return
    cost = fit_size_cost(sizes, [y for _, y in figures])
    assert cost.fixed >= 0
    assert cost.square >= 0


def test_the_largest_size_by_trying_all() -> None:
    cost = fit_size_cost([64, 128], [0.001 + 1e-7 * 64**2, 0.001 + 1e-7 * 128**2])
    for budget in np.linspace(0.0005, 0.12, 40):
        fitting = [s for s in range(32, 1025, 32) if 0.001 + 1e-7 * s**2 <= budget + 1e-12]
        assert largest_size(cost, budget + 1e-12) == (fitting[-1] if fitting else None)


def test_probes_lie_on_both_sides() -> None:
    assert probe_sizes(224) == [128, 320]
    assert probe_sizes(32) == [64]
    assert probe_sizes(1024) == [608]


def test_a_dry_run_is_no_longer_than_it_may_be() -> None:
    assert dry_workload(run(500, 500, 10), TEST) == TEST
    slow = dry_workload(run(500, 500, 1000), TEST)
    assert slow.gallery == pytest.approx(4000, abs=26)
    assert slow.queries / slow.gallery == pytest.approx(14 / 26, rel=0.01)
    assert dry_workload(run(5, 5, 1000), Workload(10, 20)) == Workload(10, 20)


def test_both_kinds_of_log_are_read() -> None:
    old = stage_seconds({"embedding_seconds": 8.0, "ranking_seconds": 0.5}, 10.0)
    assert old == StageSeconds(10.0, 1.5, 8.0, 0.5, None, None)
    new = stage_seconds(
        {
            "seconds": {
                "loading": 1.2,
                "decode": 3.0,
                "embedding": 6.0,
                "ranking": 0.5,
                "reranking": 2.0,
            }
        },
        10.0,
    )
    assert new == StageSeconds(10.0, 1.5, 6.0, 0.5, 3.0, 2.0)
    silent = stage_seconds({}, 10.0)
    assert (silent.embedding, silent.loading) == (10.0, 0.0)
