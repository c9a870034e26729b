from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from visual_search import coarse_products, match_ranks
from visual_search.coarse_products import Sides, coarse_type
from visual_search.hits import Hits, hits_of_ranks
from visual_search.match_ranks import count_hits
from visual_search.search import top_k


def naive_hits(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    own: np.ndarray | None,
    depth: int,
) -> list[tuple[int, int]]:
    """A full sort of every query's similarities; ties by gallery row."""
    found = []
    for query, vector in enumerate(queries):
        scores = [(-float(np.dot(row, vector)), number) for number, row in enumerate(gallery)]
        if own is not None:
            scores = [score for score in scores if score[1] != own[query]]
        labels = [gallery_labels[number] for _, number in sorted(scores)]
        found += [
            (query, rank)
            for rank, label in enumerate(labels, 1)
            if label == query_labels[query] and rank <= depth
        ]
    return found


def pairs(hits: Hits) -> list[tuple[int, int]]:
    return list(zip(hits.query.tolist(), hits.rank.tolist(), strict=True))


def forced(monkeypatch: pytest.MonkeyPatch, kind: torch.dtype) -> None:
    monkeypatch.setattr(coarse_products, "coarse_type", lambda dimension: kind)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    photos=st.integers(1, 60),
    asked=st.integers(1, 12),
    classes=st.integers(1, 20),
    top=st.integers(1, 300),
    tile=st.sampled_from([5, 8, 1024]),
    depth=st.sampled_from([1, 3, 1000]),
)
@example(seed=0, photos=46, asked=1, classes=2, top=16, tile=5, depth=1)
@example(seed=0, photos=44, asked=1, classes=2, top=14, tile=5, depth=1)
def test_equals_a_full_sort_with_ties_missing_classes_and_single_photos(
    kind: torch.dtype,
    seed: int,
    photos: int,
    asked: int,
    classes: int,
    top: int,
    tile: int,
    depth: int,
) -> None:
    # Whole numbers: every sum is exact in float32, ties are ties. Those above 256 are rounded in
    # bfloat16, so that what is unsure is measured again.
    rng = np.random.default_rng(seed)
    gallery = rng.integers(-top, top + 1, (photos, 4)).astype(np.float32)
    labels = rng.integers(0, classes, photos)
    queries = rng.integers(-top, top + 1, (asked, 4)).astype(np.float32)
    query_labels = rng.integers(0, classes + 3, asked)
    own = rng.permutation(photos)[: rng.integers(1, photos + 1)]
    with pytest.MonkeyPatch.context() as patch:
        forced(patch, kind)
        patch.setattr(match_ranks, "TILE", tile)
        hits = count_hits(
            torch.from_numpy(gallery), labels, torch.from_numpy(queries), query_labels, None, depth
        )
        alone = count_hits(
            torch.from_numpy(gallery),
            labels,
            torch.from_numpy(gallery[own]),
            labels[own],
            own,
            depth,
        )
    wanted = [int((labels == label).sum()) for label in query_labels]
    assert hits.wanted.tolist() == wanted
    assert hits.depth == max([depth, *wanted])
    expected = naive_hits(gallery, labels, queries, query_labels, None, hits.depth)
    assert pairs(hits) == expected
    assert alone.wanted.tolist() == [int((labels == labels[row]).sum()) - 1 for row in own]
    expected = naive_hits(gallery, labels, gallery[own], labels[own], own, alone.depth)
    assert pairs(alone) == expected


def clustered(
    photos: int, classes: int, dimension: int, noise: float
) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(classes, dimension, generator=generator)
    labels = torch.arange(photos) % classes
    vectors = centers[labels] + noise * torch.randn(photos, dimension, generator=generator)
    return torch.nn.functional.normalize(vectors), labels.numpy()


def by_search(vectors: torch.Tensor, labels: np.ndarray, own: np.ndarray, depth: int) -> Hits:
    ranks = top_k(vectors[own], vectors, depth + 1)[1].numpy()
    kept = np.stack([row[row != number][:depth] for row, number in zip(ranks, own, strict=True)])
    return hits_of_ranks(kept, labels, labels[own], own)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_equals_the_search_where_right_photos_lie_beyond_the_depth(
    kind: torch.dtype, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, kind)
    vectors, labels = clustered(2000, 400, 48, 2.0)
    own = np.arange(0, 2000, round(1 / share))
    expected = by_search(vectors, labels, own, 90)
    assert len(expected.query) < 0.8 * expected.wanted.sum()
    found = count_hits(vectors, labels, vectors[own], labels[own], own, 90)
    # Of 8,000 similarities some pairs are equal but for the last bit, and may change places.
    both = set(pairs(found)) & set(pairs(expected))
    assert len(both) >= 0.998 * len(expected.query)
    assert len(pairs(found)) == pytest.approx(len(pairs(expected)), abs=2)


def test_a_guess_that_was_too_high_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = clustered(2000, 400, 48, 2.0)
    own = np.arange(2000)
    right = count_hits(vectors, labels, vectors, labels, own, 90)
    calls: list[bool] = []
    inner: Callable = match_ranks._hits_of

    def counted(*given: object, guess: bool) -> object:
        calls.append(guess)
        return inner(*given, guess=guess)

    monkeypatch.setattr(match_ranks, "_hits_of", counted)
    monkeypatch.setattr(match_ranks, "SAMPLED_RANK", 30)  # too few for 90 of 2,000
    assert pairs(count_hits(vectors, labels, vectors, labels, own, 90)) == pairs(right)
    assert calls == [True, False]


def test_many_right_photos_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = clustered(300, 3, 16, 3.0)
    own = np.arange(300)
    right = count_hits(vectors, labels, vectors, labels, own, 10)
    assert right.depth == 99
    monkeypatch.setattr(match_ranks, "WANTED_AT_ONCE", 2500)
    assert pairs(count_hits(vectors, labels, vectors, labels, own, 10)) == pairs(right)


def test_the_error_bound_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(300, 100, generator=generator).abs() * torch.rand(300, 1) * 9
    gallery[0] = gallery[1] = 1 + 2.0**-9 + 2.0**-10  # the same rounding in every place
    codes = np.zeros(300, np.int64)
    sides = Sides(gallery, gallery, codes, codes, None)
    coarse = (sides.coarse_queries @ sides.coarse_gallery.T).float()
    exact = gallery.double() @ gallery.double().T
    rounding = torch.from_numpy(sides.rounding(coarse.numpy()))
    bound = torch.from_numpy(sides.error)[:, None] + rounding
    assert ((coarse - exact).abs() <= bound).all()
    assert ((coarse - exact).abs() > 0.2 * bound).any()


@given(value=st.floats(2.0**-50, 2.0**50, width=32), negative=st.booleans())
def test_rounding_is_bounded_by_half_of_the_last_bit(value: float, negative: bool) -> None:
    exact = torch.tensor([-value if negative else value])
    with pytest.MonkeyPatch.context() as patch:
        forced(patch, torch.bfloat16)
        one = np.zeros(1, np.int64)
        sides = Sides(exact[None], exact[None], one, one, None)
    rounded = exact.bfloat16().float()
    bound = float(sides.rounding(rounded.numpy())[0])
    assert abs(float(rounded.double() - exact.double())) <= bound
    # The next number is twice as far.
    following = torch.nextafter(rounded.abs().bfloat16(), torch.tensor(torch.inf).bfloat16())
    assert float(following.double() - rounded.abs().double()) == 2 * bound


def test_faults_are_refused() -> None:
    one = torch.ones(2, 3)
    labels = np.zeros(2, int)
    with pytest.raises(ValueError, match="do not fit"):
        count_hits(one, labels, torch.ones(2, 4), labels)
    with pytest.raises(ValueError, match="infinite"):
        count_hits(one, labels, one / 0, labels)


def test_the_coarse_type_is_one_of_two() -> None:
    assert coarse_type(64) in (torch.bfloat16, torch.float32)
