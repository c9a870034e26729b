"""Comparisons over several tables are those over all of their queries."""

from __future__ import annotations

import numpy as np
import pytest

from visual_search.ridge_baseline import Ridge
from visual_search.ridge_comparison import Judged, chance_of, comparison
from visual_search.text_retrieval import BothWays, Relevance, RetrievalScores


def scores(first: list[int]) -> RetrievalScores:
    ranks = np.array(first)
    return RetrievalScores(ranks, 1 / (1 + ranks))


def both(texts: list[int], photos: list[int]) -> BothWays:
    return BothWays(scores(texts), scores(photos), np.zeros((len(texts), 1), dtype=np.int64))


def relevance(texts: list[str], photos: int) -> Relevance:
    """Text 0 is of all photos but the last, each other one of the last alone."""
    right = [np.arange(photos - 1)] + [np.array([photos - 1])] * (len(texts) - 1)
    of = [np.array([0])] * (photos - 1) + [np.arange(1, len(texts))]
    return Relevance(texts, right, of)


@pytest.fixture
def parts() -> list[Judged]:
    def judged(texts: list[str], ridge: BothWays, run: BothWays, groups: list[int]) -> Judged:
        fitted = Ridge("use", "photo to text", 1.0, 0.5, ridge)
        known = relevance(texts, len(groups))
        return Judged(known, np.array(groups), {"ridge": fitted}, {"run": run})

    return [
        judged(["a", "b"], both([0, 7], [0, 4, 20]), both([0, 0], [0, 4, 3]), [0, 0, 1]),
        judged(["b", "c"], both([12, 1], [9, 0]), both([0, 1], [0, 0]), [0, 1]),
    ]


def test_queries_of_all_tables_count_alike(parts: list[Judged]) -> None:
    found = comparison(parts)
    assert found["queries"] == {"text_to_photo": 4, "photo_to_text": 5}
    ridge, run = found["ridge"]["scores"], found["runs"]["run"]["scores"]
    assert ridge["text_to_photo"] == {
        "R@1": 1 / 4,
        "R@5": 2 / 4,
        "R@10": 3 / 4,
        "mAP": pytest.approx((1 + 1 / 8 + 1 / 13 + 1 / 2) / 4),
    }
    assert run["text_to_photo"]["R@1"] == 3 / 4
    assert run["photo_to_text"]["R@1"] == pytest.approx(3 / 5)
    gain = found["runs"]["run"]["gain"]["text_to_photo"]["R@1"]
    assert gain["mean"] == pytest.approx(2 / 4)
    # b is asked in both tables: it is drawn with both of its gains, or not at all.
    assert (gain["low"], gain["high"]) == (0.0, 1.0)
    assert len(found["ridge"]["choices"]) == 2


def test_chance_is_what_draws_reach() -> None:
    known = [relevance(["a", "b", "c"], 9), relevance(["d", "e"], 14)]
    rng = np.random.default_rng(0)
    hits: dict[int, list[float]] = {1: [], 5: [], 10: []}
    for part in known:
        for right in part.photos_of:
            drawn = np.array([rng.permutation(len(part.texts_of)) for _ in range(4000)])
            for k, values in hits.items():
                values.append(float(np.isin(drawn[:, :k], right).any(axis=1).mean()))
    found = chance_of(known)["text_to_photo"]
    for k, values in hits.items():
        assert found[f"R@{k}"] == pytest.approx(np.mean(values), abs=0.01)
