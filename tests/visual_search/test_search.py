from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search.search import stable_top_k, top_k


def naive_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Sort all by falling score, then by index: Python's own sort."""
    rows = [sorted((-score, index) for index, score in enumerate(row)) for row in scores]
    return np.array([[index for _, index in row[:k]] for row in rows])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_queries=st.integers(1, 9),
    n_gallery=st.integers(1, 200),
    k=st.integers(1, 60),
    block=st.integers(1, 2000),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_equals_a_full_sort_with_ties_by_index(
    seed: int, n_queries: int, n_gallery: int, k: int, block: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    # Small integers: products and sums are exact, so ties are real ties.
    queries = rng.integers(-levels, levels, (n_queries, 3)).astype(np.float32)
    gallery = rng.integers(-levels, levels, (n_gallery, 3)).astype(np.float32)
    scores, indexes = top_k(torch.from_numpy(queries), torch.from_numpy(gallery), k, block)
    expected = naive_top_k(queries @ gallery.T, min(k, n_gallery))
    np.testing.assert_array_equal(indexes.numpy(), expected)
    np.testing.assert_array_equal(
        scores.numpy(), np.take_along_axis(queries @ gallery.T, expected, axis=1)
    )


def test_blocks_of_a_large_gallery_are_merged_in_order() -> None:
    # Several blocks of 65,536 rows; the same vector stands at the start of each.
    gallery = torch.zeros(200_000, 2)
    gallery[:, 1] = 1.0
    best = [0, 65_536, 131_072, 199_999]
    gallery[best] = torch.tensor([1.0, 0.0])
    _, indexes = top_k(torch.tensor([[1.0, 0.0]]), gallery, 6)
    assert indexes[0].tolist() == [0, 65_536, 131_072, 199_999, 1, 2]


def test_ties_across_the_last_place_go_to_the_smaller_index() -> None:
    values = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0, 1.0]])
    best, columns = stable_top_k(values, 4)
    assert columns.tolist() == [[1, 4, 0, 2]]
    assert best.tolist() == [[3.0, 2.0, 1.0, 1.0]]


def test_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of columns"):
        top_k(torch.zeros(2, 3), torch.zeros(2, 4), 1)
    with pytest.raises(ValueError, match="k must be"):
        top_k(torch.zeros(2, 3), torch.zeros(2, 3), 0)
