"""Scores of retrieval tasks from the ranks of the right photos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from visual_search.hits import Hits
from visual_search.metrics import MAX_PREDICTIONS, precision_sums

RECALLS = (1, 5, 10, 100)
PRECISION_WIDTH = 5


def _first(hits: Hits, limit: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Query and rank of the hits up to a rank, which may differ from query to query."""
    limits = np.broadcast_to(limit, len(hits.wanted))
    kept = hits.rank <= limits[hits.query]
    return hits.query[kept], hits.rank[kept]


def _share(total: np.ndarray, of: np.ndarray) -> np.ndarray:
    """`total / of`; NaN where there is nothing to find."""
    return np.divide(total, of, out=np.full(len(of), np.nan), where=of > 0)


def average_precision_at_1000(hits: Hits) -> np.ndarray:
    """The challenge's: sum of P@k at the hits with k <= 1000, divided by the right photos."""
    query, rank = _first(hits, MAX_PREDICTIONS)
    return _share(precision_sums(query, rank, len(hits.wanted)), hits.wanted)


def average_precision_at_r(hits: Hits) -> np.ndarray:
    """MAP@R (Musgrave et al. 2020): the same over the first R ranks, R being the right photos."""
    query, rank = _first(hits, hits.wanted)
    return _share(precision_sums(query, rank, len(hits.wanted)), hits.wanted)


def r_precision(hits: Hits) -> np.ndarray:
    """Share of right photos among the first R, R being how many there are."""
    query, _ = _first(hits, hits.wanted)
    return _share(np.bincount(query, minlength=len(hits.wanted)), hits.wanted)


def precision_at_5(hits: Hits) -> np.ndarray:
    """mP@5 of the universal embedding challenge: share of right photos among the first
    `min(R, 5)`."""
    width = np.minimum(hits.wanted, PRECISION_WIDTH)
    query, _ = _first(hits, width)
    return _share(np.bincount(query, minlength=len(hits.wanted)), width)


def recall_at(k: int) -> Callable[[Hits], np.ndarray]:
    """R@k as metric learning has it: 1 where a right photo is among the first k, else 0."""

    def recall(hits: Hits) -> np.ndarray:
        query, _ = _first(hits, k)
        found = np.bincount(query, minlength=len(hits.wanted)) > 0
        return np.where(hits.wanted > 0, found, np.nan)

    return recall


def global_average_precision(
    confidence: np.ndarray, right: np.ndarray, has_match: np.ndarray
) -> float:
    """GAP, or micro-AP: one answer a query, all queries ranked by confidence (Perronnin 2009).

    `sum over i of P(i) * rel(i), divided by M`: P(i) is the precision among the i most confident
    answers, M the number of queries that have a match. Queries of equal confidence are taken
    together, the precision of each being that at the end of the tie, so that their order is
    of no account.

    Args:
        confidence: `(n_queries,)`, similarity to the first photo of the ranking.
        right: `(n_queries,)`, bool: whether that photo is right; never for a distractor.
        has_match: `(n_queries,)`, bool.

    Returns:
        0..1; NaN where no query has a match.
    """
    if not has_match.any():
        return float("nan")
    order = np.argsort(-confidence, kind="stable")
    confident, correct = confidence[order], right[order].astype(np.int64)
    last = np.append(np.flatnonzero(np.diff(confident)), len(order) - 1)
    hits_so_far = np.cumsum(correct)[last]
    new_hits = np.diff(hits_so_far, prepend=0)
    return float((new_hits * hits_so_far / (last + 1)).sum() / has_match.sum())


METRICS: dict[str, Callable[[Hits], np.ndarray]] = {
    "mAP@1000": average_precision_at_1000,
    "mP@5": precision_at_5,
    **{f"R@{k}": recall_at(k) for k in RECALLS},
    "MAP@R": average_precision_at_r,
    "R-precision": r_precision,
}
"""Of each query, `(n_queries,)`, float64, 0..1, NaN where the gallery has nothing to find."""


def per_query(hits: Hits) -> dict[str, np.ndarray]:
    """Every metric of every query.

    Args:
        hits: whose depth is at least the number of right photos of each query, or what is
            deeper counts as not found.
    """
    return {name: metric(hits) for name, metric in METRICS.items()}
