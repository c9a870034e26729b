"""Which of a data set's photos to keep: the best of each group of near-duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from visual_search.near_duplicates import pairs_within
from visual_search.progress import progress_bar


@dataclass(frozen=True)
class Removals:
    """Photos to leave out, in the order of the table; each has a better one that stays."""

    removed: np.ndarray
    """`(n,)`, int64, photos by their number."""
    duplicate_of: np.ndarray
    """`(n,)`, int64, the kept photo nearest to each."""
    distance: np.ndarray
    """`(n,)`, int64, bits between the two hashes."""


def find_removals(
    hashes: np.ndarray,
    pixels: np.ndarray,
    groups: np.ndarray,
    radius: int,
    *,
    progress: bool = False,
) -> Removals:
    """Keep the best of near-duplicates.

    The rule: photos are looked at from the largest to the smallest, and in the order of the table
    where they are equally large. A photo goes if its hash is within `radius` bits of one of its
    group that was kept, and is called a duplicate of the nearest of those. So whatever goes has a
    kept photo that near: a chain of small differences removes nothing that is far from all others.

    Args:
        hashes: `(n,)`, uint64.
        pixels: `(n,)`, width x height of each photo.
        groups: `(n,)`, int64; photos are compared within a group: the class, or all one.
        radius: Hamming distance, 0..64.
        progress: whether there is a progress bar.
    """
    best_first = np.lexsort((np.arange(len(hashes)), -pixels, groups))
    parts = [
        _within_group(hashes, members, radius)
        for members in _runs(best_first, groups[best_first], progress)
    ]
    removed, kept, distance = (
        np.concatenate([np.zeros(0, np.int64), *(part[i] for part in parts)]) for i in range(3)
    )
    order = np.argsort(removed, kind="stable")
    return Removals(removed[order], kept[order], distance[order])


def _runs(members: np.ndarray, groups: np.ndarray, progress: bool) -> Iterator[np.ndarray]:
    """The members of each group of two or more."""
    _, starts, sizes = np.unique(groups, return_index=True, return_counts=True)
    several = np.flatnonzero(sizes > 1)
    for i in progress_bar("duplicates", "class", iterable=several, shown=progress):
        yield members[starts[i] : starts[i] + sizes[i]]


def _within_group(
    hashes: np.ndarray, members: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Removed, duplicate of, distance; `members` come best first."""
    _, first, inverse = np.unique(hashes[members], return_index=True, return_inverse=True)
    best = np.sort(first)
    """Of each hash the best photo, still best first: equal hashes need no comparing."""
    pairs = pairs_within(hashes[members[best]], radius)
    nearest = np.arange(len(best))
    distance = np.zeros(len(best), dtype=np.int64)
    # By the worse of the two, then by what it would be called a duplicate of.
    order = np.lexsort((pairs.left, pairs.distance, pairs.right))
    for better, worse, apart in zip(
        pairs.left[order].tolist(),
        pairs.right[order].tolist(),
        pairs.distance[order].tolist(),
        strict=True,
    ):
        if nearest[worse] == worse and nearest[better] == better:
            nearest[worse], distance[worse] = better, apart
    of_hash = np.searchsorted(best, first)[inverse]
    kept = best[nearest[of_hash]]
    gone = np.flatnonzero(kept != np.arange(len(members)))
    return members[gone], members[kept[gone]], distance[of_hash[gone]]
