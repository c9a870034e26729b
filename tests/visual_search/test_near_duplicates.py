from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search import near_duplicates
from visual_search.near_duplicates import TooManyPairs, pairs_between, pairs_within

hashes = st.lists(st.integers(0, 2**64 - 1), max_size=40)
flips = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 63)), max_size=60)


def naive(first: list[int], second: list[int], radius: int, within: bool) -> list[tuple[int, ...]]:
    return [
        (i, j, (a ^ b).bit_count())
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (a ^ b).bit_count() <= radius and (i < j or not within)
    ]


def listed(pairs: near_duplicates.Pairs) -> list[tuple[int, ...]]:
    return list(
        zip(pairs.left.tolist(), pairs.right.tolist(), pairs.distance.tolist(), strict=True)
    )


def neighbours(values: list[int], changes: list[tuple[int, int]]) -> list[int]:
    """The hashes and copies of them with some bits turned over: near-duplicates of all degrees."""
    answer = list(values)
    for place, bit in changes:
        if answer:
            answer.append(answer[place % len(answer)] ^ (1 << bit))
    return answer


@pytest.fixture(params=["tables", "brute force"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Few hashes are compared one by one; here each way has to answer for any number."""
    monkeypatch.setattr(near_duplicates, "BLOCK", 128)
    tables = request.param == "tables"
    monkeypatch.setattr(near_duplicates, "COMPARE_BRUTE", 1e18 if tables else 0.0)
    return str(request.param)


@settings(deadline=None, max_examples=25)
@given(hashes, flips, st.integers(0, 9))
def test_few_hashes(values: list[int], changes: list[tuple[int, int]], radius: int) -> None:
    every = neighbours(values, changes)
    found = pairs_within(np.array(every, dtype=np.uint64), radius)
    assert listed(found) == naive(every, every, radius, within=True)


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 7, 10])
def test_either_way_finds_what_the_loop_finds(way: str, radius: int) -> None:
    rng = np.random.default_rng(radius)
    start = [int(v) for v in rng.integers(0, 2**64, 40, dtype=np.uint64)]
    changes = [(int(a), int(b)) for a, b in rng.integers(0, (400, 64), (110, 2))]
    every = neighbours(start, changes)
    array = np.array(every, dtype=np.uint64)
    assert listed(pairs_within(array, radius)) == naive(every, every, radius, within=True)
    between = pairs_between(array[:90], array[60:], radius)
    assert listed(between) == naive(every[:90], every[60:], radius, within=False)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 13])
def test_every_way_of_cutting_misses_nothing(count: int) -> None:
    """The pigeonhole: of the flips that a radius allows, each is within reach of some piece."""
    rng = np.random.default_rng(count)
    for radius in range(15):
        pieces = near_duplicates._pieces(count, radius)
        assert sum(piece.bits for piece in pieces) == 64
        for _ in range(300):
            places = rng.choice(64, radius, replace=False)
            difference = np.array([sum(1 << int(place) for place in places)], dtype=np.uint64)
            apart = [int(np.bitwise_count(piece.of(difference))[0]) for piece in pieces]
            assert any(a <= piece.radius for a, piece in zip(apart, pieces, strict=True))


def test_many_equal_hashes_and_none() -> None:
    same = pairs_within(np.full(300, 7, dtype=np.uint64), 4)
    assert len(same) == 300 * 299 // 2
    assert len(set(zip(same.left.tolist(), same.right.tolist(), strict=True))) == len(same)
    assert len(pairs_within(np.zeros(0, dtype=np.uint64), 4)) == 0
    assert len(pairs_between(np.zeros(0, dtype=np.uint64), np.zeros(5, dtype=np.uint64), 4)) == 0


@pytest.mark.parametrize("rows", [50, 30_000])
def test_too_many_pairs_are_not_gathered_first(rows: int) -> None:
    """All equal hashes: 900 million pairs would take 15 GB."""
    first, second = np.full(rows, 7, dtype=np.uint64), np.full(rows, 6, dtype=np.uint64)
    tracemalloc.start()
    with pytest.raises(TooManyPairs):
        pairs_between(first, second, 4, most=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000
    assert len(pairs_between(first[:50], second[:40], 4, most=2000)) == 2000


def test_thousands_against_brute_force() -> None:
    rng = np.random.default_rng(3)
    array = rng.integers(0, 2**64, 6000, dtype=np.uint64)
    turned = rng.integers(0, 64, (3000, 6)).astype(np.uint64)
    array[3000:] = array[:3000] ^ np.bitwise_or.reduce(np.uint64(1) << turned, axis=1)
    for radius in (4, 10):
        distance = np.bitwise_count(array[:, None] ^ array[None])
        left, right = np.nonzero(np.triu(distance <= radius, 1))
        found = pairs_within(array, radius)
        assert np.array_equal(found.left, left)
        assert np.array_equal(found.right, right)
        assert np.array_equal(found.distance, distance[left, right])


def test_a_radius_beyond_the_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.64"):
        pairs_within(np.zeros(2, dtype=np.uint64), 65)
