"""Counts in little memory: never too small, hardly ever too large."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataset.image_text.query_lines import TextCounts, keys


@given(st.lists(st.integers(0, 200), min_size=1, max_size=300), st.integers(2, 8))
def test_no_count_is_too_small(texts: list[int], bits: int) -> None:
    counts = TextCounts(bits)
    found = keys([str(text) for text in texts])
    counts.add(found[:100])
    counts.add(found[100:])
    exact = np.array([texts.count(text) for text in texts])
    assert (counts.of(found) >= exact).all()


def test_with_room_counts_are_exact() -> None:
    rng = np.random.default_rng(0)
    texts = keys([str(text) for text in rng.zipf(1.5, 50_000)])
    counts = TextCounts(18)
    counts.add(texts)
    distinct, exact = np.unique(texts, return_counts=True)
    assert (counts.of(distinct) == exact).mean() > 0.99
    assert counts.of(keys(["never seen"])).tolist() == [0]
