from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search.evaluation.metrics import average_precision, mean_average_precision


def naive_average_precision(
    ranks: np.ndarray, gallery_products: np.ndarray, query_products: np.ndarray
) -> list[float]:
    """The contract's definition, word for word: a loop over queries and ranks."""
    answers = []
    # Lists: looking at an array's numbers one by one takes several times as long.
    gallery = gallery_products.tolist()
    for row, product in zip(ranks.tolist(), query_products.tolist(), strict=True):
        photos = sum(1 for other in gallery if other == product)
        hits, total = 0, 0.0
        for k, index in enumerate(row[:1000], start=1):
            if index < len(gallery) and gallery[index] == product:
                hits += 1
                total += hits / k
        answers.append(total / photos if photos else 0.0)
    return answers


def test_hand_worked_case() -> None:
    gallery = np.array(["a", "b", "a", "c"])
    # Product a has photos 0 and 2, found at ranks 1 and 3: (1/1 + 2/3) / 2.
    # Product c has photo 3, found at rank 4: (1/4) / 1.
    ranks = np.array([[0, 1, 2, 3], [0, 1, 2, 3]])
    scores = average_precision(ranks, gallery, np.array(["a", "c"]))
    np.testing.assert_allclose(scores, [(1 + 2 / 3) / 2, 0.25])
    assert mean_average_precision(ranks, gallery, np.array(["a", "c"])) == scores.mean()


def test_photos_that_were_not_returned_still_count_below_the_line() -> None:
    gallery = np.array([7, 7, 7, 8])
    assert average_precision(np.array([[0]]), gallery, np.array([7])) == pytest.approx([1 / 3])


def test_more_photos_than_columns_are_not_capped_at_1000() -> None:
    # 1,500 photos of the product; the 1,000 best are all right: sum of ones is 1,000 of 1,500.
    gallery = np.zeros(1500, dtype=np.int64)
    ranks = np.arange(1500)[None]
    assert average_precision(ranks, gallery, np.array([0])) == pytest.approx([1000 / 1500])


def test_perfect_ranking_scores_one_and_product_without_photo_scores_zero() -> None:
    gallery = np.array([1, 1, 2])
    ranks = np.array([[1, 0, 2], [0, 1, 2]])
    np.testing.assert_array_equal(average_precision(ranks, gallery, np.array([1, 9])), [1.0, 0.0])


def test_filler_indexes_are_never_relevant() -> None:
    gallery = np.array([5, 6])
    ranks = np.array([[1, 0, 2, 3, 4]])
    assert average_precision(ranks, gallery, np.array([5])) == pytest.approx([0.5])


def test_a_wrong_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="3 queries"):
        average_precision(np.zeros((2, 4), dtype=int), np.zeros(4), np.zeros(3))
    with pytest.raises(ValueError, match="without a query"):
        mean_average_precision(np.zeros((0, 4), dtype=int), np.zeros(4), np.zeros(0))


@settings(max_examples=1000, deadline=None)
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
