"""How long ranking and re-ranking take at the most: what a clock keeps back for them.

What is kept and not needed is taken from the embedding, which then sees photos at a lower
resolution: each step counts with the searches that it does, and nothing for those it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visual_search.errors import UserError
from visual_search.reciprocal import KReciprocal
from visual_search.rerank import Step, parse_steps
from visual_search.vector_steps import (
    PCA,
    DatabaseAugmentation,
    QueryExpansion,
    SwappedDatabaseAugmentation,
    TwoPassExpansion,
)

# One query against one gallery photo on one core that has much else to do: 2048 products and
# sums, and the partial sort of the best 1,000.
SEARCH_SECONDS = 5e-8
# Below: twice what two cores took for some thousand photos of 512 dimensions, or more.
#
# One photo against another on one core, where a step looks for a few neighbours.
NEIGHBOUR_SECONDS = 6e-8
# One photo in a step, which reads and writes its embedding a few times.
PHOTO_SECONDS = 1e-4
# One neighbour that is added to a photo.
ADDED_SECONDS = 1e-4
# The principal directions, whatever the number of photos.
PCA_SECONDS = 8.0
# k-reciprocal re-ranking, which works on one core but for its search: one photo's encoding at
# k1 = 20, which grows with the square of k1, and one query against one gallery photo.
ENCODING_SECONDS = 2e-3
OVERLAP_SECONDS = 2.8e-7
# What any search takes, however small.
LEAST_SECONDS = 0.05


def search_seconds(n_queries: int, n_gallery: int, cores: int) -> float:
    """Seconds that the final search takes at the most, roughly."""
    return LEAST_SECONDS + n_queries * n_gallery * SEARCH_SECONDS / cores


def rerank_seconds(steps: Sequence[Step], n_queries: int, n_gallery: int, cores: int) -> float:
    """Seconds that the steps take at the most, roughly; the final search is not among them."""
    return sum(_step_seconds(step, n_queries, n_gallery, cores) for step in steps)


def _step_seconds(step: Step, n_queries: int, n_gallery: int, cores: int) -> float:
    photos = n_queries + n_gallery
    pairs = similarities(step, n_queries, n_gallery)
    seconds = photos * PHOTO_SECONDS + pairs * NEIGHBOUR_SECONDS / cores
    seconds += _added(step, n_queries, n_gallery) * ADDED_SECONDS
    if isinstance(step, PCA):
        seconds += PCA_SECONDS
    if isinstance(step, KReciprocal):
        seconds += photos * ENCODING_SECONDS * (step.k1 / 20) ** 2
        seconds += n_queries * n_gallery * OVERLAP_SECONDS
    return seconds + (LEAST_SECONDS if pairs else 0.0)


def _added(step: Step, n_queries: int, n_gallery: int) -> int:
    """How many neighbours are added to photos in all."""
    if isinstance(step, DatabaseAugmentation):
        return n_gallery * step.neighbours
    if isinstance(step, QueryExpansion):
        return n_queries * step.neighbours
    if isinstance(step, SwappedDatabaseAugmentation):
        return n_gallery * step.gallery_neighbours + n_queries * step.query_neighbours
    return 3 * n_queries if isinstance(step, TwoPassExpansion) else 0


def similarities(step: Step, n_queries: int, n_gallery: int) -> int:
    """How many similarities a step looks at when it searches for neighbours; 0 if it does not."""
    sizes = {"queries": n_queries, "gallery": n_gallery}
    if isinstance(step, DatabaseAugmentation):
        return n_gallery * sizes[step.source]
    if isinstance(step, QueryExpansion):
        return n_queries * sizes[step.source]
    if isinstance(step, SwappedDatabaseAugmentation):
        return n_queries * (n_queries + n_gallery)
    if isinstance(step, TwoPassExpansion):
        return 2 * n_queries * n_gallery
    if isinstance(step, KReciprocal):
        return (n_queries + n_gallery) ** 2
    return 0


@dataclass(frozen=True)
class Reserve:
    """What a ranker with a clock keeps back for ranking; embedding cannot have it."""

    steps: tuple[Step, ...]
    """Of re-ranking."""
    cores: int

    @classmethod
    def said_by(cls, log: Mapping[str, Any], cores: int) -> Reserve | None:
        """From the ranker's log; None where it keeps no clock, or is of another kit.

        Args:
            log: what it wrote.
            cores: that it ran on.
        """
        if not (log.get("clock") or {}).get("limit_seconds") or "rerank" not in log:
            return None
        try:
            return cls(parse_steps(log["rerank"], "rerank"), cores)
        except UserError:
            return None

    def seconds(self, n_queries: int, n_gallery: int) -> tuple[float, float]:
        """For the final search, and for re-ranking."""
        sizes = n_queries, n_gallery, self.cores
        return search_seconds(*sizes), rerank_seconds(self.steps, *sizes)
