"""Counting runs of words, with and without room for all of them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dataset.image_text.text_statistics import TopNgrams, ngrams

TEXTS = st.lists(st.lists(st.sampled_from("абвгд"), max_size=6).map(" ".join), max_size=40)


def test_runs_of_words() -> None:
    assert ngrams("а б в г", 3) == ["а б в", "б в г"]
    assert ngrams("а б", 2) == ["а б"]
    assert ngrams("а б", 3) == []
    assert ngrams("а б", 3, shorter=True) == ["а б"]
    assert ngrams("", 3, shorter=True) == []


@given(TEXTS, st.integers(1, 3), st.booleans())
def test_with_room_for_all_counts_are_exact(texts: list[str], n: int, shorter: bool) -> None:
    found = TopNgrams(n, shorter=shorter)
    found.add(texts)
    naive: Counter[str] = Counter()
    for text in texts:
        words = text.split()
        for start in range(len(words)):
            if start + n <= len(words):
                naive[" ".join(words[start : start + n])] += 1
        if shorter and 0 < len(words) < n:
            naive[text] += 1
    assert dict(found.most_common()) == naive
    assert found.error == 0
    counts = [count for _, count in found.most_common(4)]
    assert counts == sorted(naive.values(), reverse=True)[:4]


@given(TEXTS, st.integers(1, 6))
def test_with_little_room_no_count_is_too_high_or_lower_than_said(
    texts: list[str], capacity: int
) -> None:
    exact, found = TopNgrams(2), TopNgrams(2, capacity)
    for text in texts:
        exact.add([text])
        found.add([text])
        assert len(found) <= capacity
    kept = dict(found.most_common())
    for gram, count in exact.most_common():
        assert count - found.error <= kept.get(gram, 0) <= count
