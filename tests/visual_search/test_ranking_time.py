from __future__ import annotations

from typing import Any

import pytest

from visual_search import ranking_time
from visual_search.capacity import ImageCounts, Run, StageSeconds, predict
from visual_search.clock import Clock, Pacer
from visual_search.ranking_time import Reserve, rerank_seconds, search_seconds, similarities
from visual_search.rerank import STEPS, parse_steps

QUERIES, GALLERY, CORES = 14_000, 26_000, 4
USUAL = ("power", "center", "pca", "query_expansion", "k_reciprocal")


def steps_of(*names: str) -> Any:
    return parse_steps([{"name": name} for name in names], "test")


def searched(monkeypatch: pytest.MonkeyPatch, step: Any, n_queries: int, n_gallery: int) -> int:
    """The similarities that a step really asks the search for."""
    import torch

    from visual_search import reciprocal, vector_steps

    looked_at: list[int] = []
    search = vector_steps.top_k

    def counted(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> Any:
        looked_at.append(len(queries) * len(gallery))
        return search(queries, gallery, k)

    monkeypatch.setattr(vector_steps, "top_k", counted)
    generator = torch.Generator().manual_seed(0)
    sides = [
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator))
        for n in (n_queries, n_gallery)
    ]
    if isinstance(step, reciprocal.KReciprocal):
        step.rank(sides[0], sides[1], 5)
    else:
        step(*sides)
    return sum(looked_at)


@pytest.mark.parametrize(
    "step",
    [
        *({"name": name} for name in STEPS),
        {"name": "dba", "source": "queries"},
        {"name": "query_expansion", "source": "queries"},
    ],
    ids=lambda step: "-".join(map(str, step.values())),
)
def test_each_step_counts_with_the_searches_that_it_does(
    step: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (parsed,) = parse_steps([step], "test")
    assert similarities(parsed, 30, 50) == searched(monkeypatch, parsed, 30, 50)


def test_steps_that_search_nothing_keep_next_to_nothing() -> None:
    plain = rerank_seconds(steps_of("power", "center", "zscore", "pca"), QUERIES, GALLERY, CORES)
    assert plain < 0.05 * 600
    searching = rerank_seconds(steps_of("query_expansion"), QUERIES, GALLERY, CORES)
    assert searching == pytest.approx(
        ranking_time.LEAST_SECONDS
        + 40_000 * ranking_time.PHOTO_SECONDS
        + 14_000 * 3 * ranking_time.ADDED_SECONDS
        + 14_000 * 26_000 * ranking_time.NEIGHBOUR_SECONDS / 4
    )


def test_a_usual_list_leaves_the_hidden_test_its_resolution() -> None:
    """40,000 photos at 7.5 ms each on 4 cores take 300 s of the 600."""
    ranking, reranking = Reserve(steps_of(*USUAL), CORES).seconds(QUERIES, GALLERY)
    # All photos against all for each of the five steps, on one core, would be 400 s.
    assert ranking + reranking < 260
    pacer = Pacer(Clock(600, lambda: 0.0), 40_000, 224, 1, ranking=ranking, reranking=reranking)
    step = pacer.next(4, 4)
    assert step is not None
    pacer.record(step, 4, 4 * 0.004, 4 * 0.026)  # in one of four streams
    step = pacer.next(4, 4)
    assert step is not None
    assert step.size == 224
    assert pacer.reranks


def run(seconds: StageSeconds, counts: ImageCounts, reserve: Reserve | None) -> Run:
    return Run(224, counts, seconds, 10**9, reserve)


def test_a_prediction_counts_what_the_clock_would_keep() -> None:
    target = ImageCounts(QUERIES, GALLERY)
    small, quick = ImageCounts(100, 100), StageSeconds(4, 1, 2, 0.0001, None, 0.0001)
    without = predict(run(quick, small, None), target)
    # Half as many cores here as there: what is kept here is twice as much.
    kept = predict(run(quick, small, Reserve(steps_of(*USUAL), 2)), target, core_share=0.5)
    assert kept.ranking > without.ranking
    assert kept.ranking == pytest.approx(search_seconds(QUERIES, GALLERY, 4), rel=0.02)
    expected = rerank_seconds(steps_of(*USUAL), QUERIES, GALLERY, 2) / 2
    assert kept.reranking == pytest.approx(expected)
    slow = StageSeconds(40, 1, 2, 10, None, 20)
    assert predict(run(slow, target, Reserve(steps_of("center"), 4)), target).reranking == 20


def test_what_a_log_says() -> None:
    clock = {"limit_seconds": 600.0}
    log: dict[str, Any] = {"clock": clock, "rerank": [{"name": "power", "exponent": 0.7}]}
    said = Reserve.said_by(log, 4)
    assert said == Reserve(parse_steps(log["rerank"], "test"), 4)
    others: list[dict[str, Any]] = [{}, {"clock": clock}, {"clock": {}, "rerank": []}]
    for other in (*others, log | {"rerank": ["x"]}):
        assert Reserve.said_by(other, 4) is None
