"""The metrics beside a loop, hand-worked values and scikit-learn.

tests/benchmarks/test_evaluate.py has them beside pytorch-metric-learning.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tests.commands import refused
from visual_search.evaluation.metrics import (
    METRICS,
    average_precision,
    check_ranks,
    global_average_precision,
    hits_of_ranks,
    per_query,
)


def naive_average_precision(
    ranks: np.ndarray, gallery_products: np.ndarray, query_products: np.ndarray
) -> list[float]:
    """The contract's definition, word for word: a loop over queries and ranks."""
    answers = []
    # Lists: looking at an array's numbers one by one takes several times as long.
    gallery = gallery_products.tolist()
    for row, product in zip(ranks.tolist(), query_products.tolist(), strict=True):
        images = sum(1 for other in gallery if other == product)
        hits, total = 0, 0.0
        for k, index in enumerate(row[:1000], start=1):
            if index < len(gallery) and gallery[index] == product:
                hits += 1
                total += hits / k
        answers.append(total / images if images else 0.0)
    return answers


def test_more_images_than_columns_are_not_capped_at_1000() -> None:
    # 1,500 images of the product; the 1,000 best are all right: sum of ones is 1,000 of 1,500.
    gallery = np.zeros(1500, dtype=np.int64)
    ranks = np.arange(1500)[None]
    assert average_precision(ranks, gallery, np.array([0])) == pytest.approx([1000 / 1500])
    ranks = np.concatenate([ranks, ranks])
    ranks[1, 3] = 1500  # names none
    scores = per_query(hits_of_ranks(ranks, gallery, np.array([0, 0])))
    whole, less = scores[["R-precision", "mP@5", "MAP@R"]].to_numpy().tolist()
    assert whole == [1, 1, 1]
    assert less[:2] == [1499 / 1500, 4 / 5]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_gallery=st.integers(1, 1200),
    n_queries=st.integers(1, 6),
    products=st.integers(1, 40),
)
def test_equals_the_loop_to_the_last_bit(
    seed: int, n_gallery: int, n_queries: int, products: int
) -> None:
    rng = np.random.default_rng(seed)
    gallery = rng.integers(0, products, n_gallery)
    queries = rng.integers(0, products + 2, n_queries)
    width = max(n_gallery, 1000)
    ranks = np.stack([rng.permutation(width)[:1000] for _ in range(n_queries)])
    ours = average_precision(ranks, gallery, queries)
    assert ours.tolist() == naive_average_precision(ranks, gallery, queries)


def test_hand_worked_case_of_every_metric() -> None:
    labels = np.array(["a", "b", "a", "c", "a", "b"])
    # The first query finds a at ranks 1, 3 and 5; the second its only c at rank 6; the third is
    # of no class that the gallery has.
    ranks = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5, 3], [0, 1, 2, 3, 4, 5]])
    scores = per_query(hits_of_ranks(ranks, labels, np.array(["a", "c", "z"])))
    nan = np.nan
    expected = {
        "mAP@1000": [(1 + 2 / 3 + 3 / 5) / 3, 1 / 6, nan],
        "mP@5": [2 / 3, 0.0, nan],  # of the first min(3, 5), and of the first 1
        "R@1": [1, 0, nan],
        "R@5": [1, 0, nan],
        "R@10": [1, 1, nan],
        "R@100": [1, 1, nan],
        "MAP@R": [(1 + 2 / 3) / 3, 0.0, nan],
        "R-precision": [2 / 3, 0.0, nan],
    }
    assert scores.columns.tolist() == list(expected) == list(METRICS)
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, err_msg=name)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 40), steps=st.integers(1, 30))
def test_gap_equals_scikit_learn(seed: int, queries: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    has_match = rng.random(queries) < 0.7
    right = has_match & (rng.random(queries) < 0.6)
    tied = rng.integers(0, steps, queries) / steps
    if not has_match.any():
        assert np.isnan(global_average_precision(tied, right, has_match))
        return
    # scikit-learn divides by the right answers, GAP by the queries that have one.
    reference = average_precision_score(right, tied) if right.any() else 0.0
    expected = reference * right.sum() / has_match.sum()
    assert global_average_precision(tied, right, has_match) == pytest.approx(expected)


def rows(n_gallery: int) -> np.ndarray:
    """Of four queries: the gallery in any order, and what fills the rows up."""
    rng, filler = np.random.default_rng(0), np.arange(n_gallery, 1000)
    return np.stack([np.append(rng.permutation(n_gallery)[:1000], filler) for _ in range(4)])


def test_arrays_that_would_fail_or_score_wrongly_are_refused() -> None:
    for n_gallery in (3, 1000, 1400):
        check_ranks(rows(n_gallery), 4, n_gallery)
    good = rows(1400)

    def refusal(ranks: object, n_gallery: int = 1400) -> str:
        return refused(".", check_ranks, ranks, 4, n_gallery)

    assert "list" in refusal(good.tolist())
    assert "float64" in refusal(good.astype(float))
    assert "(3, 1000)" in refusal(good[:3])
    assert "(4, 999)" in refusal(good[:, :999])
    for place, row, words in (
        ((2, 5), -1, "row 2"),
        ((1, 7), 1400, "gallery row 1400; the gallery has rows 0 to 1399"),
        ((3, 9), good[3, 0], "row 3 of the ranker's array names a gallery row twice"),
    ):
        wrong = good.copy()
        wrong[place] = row
        assert words in refusal(wrong)
    early = rows(3)
    early[0, [0, 3]] = early[0, [3, 0]]
    assert "in front of" in refusal(early, 3)
