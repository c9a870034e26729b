"""Retrieval metrics. The challenge's mAP is defined here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.ranking.rank import MAX_PREDICTIONS

RECALLS = (1, 5, 10, 100)
# Ranks looked at together: what is between the steps stays in the cache.
RANK_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Hits:
    """Where the relevant images stand in the rankings of queries."""

    query: np.ndarray
    """`(hits,)`, int64, rising."""
    rank: np.ndarray
    """`(hits,)`, int64, from 1, rising within a query."""
    n_relevant: np.ndarray
    """`(n_queries,)`, int64: relevant images in the gallery, at whatever rank; a query that is an
    image of the gallery itself does not count."""


def hits_of_ranks(
    ranks: np.ndarray, gallery: np.ndarray, queries: np.ndarray, own: np.ndarray | None = None
) -> Hits:
    """The hits of rankings.

    Args:
        ranks: `(n_queries, columns)`, integer gallery rows, best first. A row at or above the
            number of gallery images names no image and is never relevant: it fills up the
            rankings of a gallery smaller than the number of columns.
        gallery: `(n_gallery,)`, the label of each gallery image.
        queries: `(n_queries,)`, the label of each query.
        own: `(n_queries,)`, where the queries are images of the gallery, the row of each, which
            `ranks` must not name (:func:`visual_search.ranking.rank.without_own`).

    Raises:
        ValueError: when the shapes do not fit together, or a query is ranked for itself.
    """
    if ranks.ndim != 2 or len(ranks) != len(queries):
        raise ValueError(f"ranks {ranks.shape} must have a row for each of {len(queries)} queries")
    if own is not None and (ranks == own[:, None]).any():
        raise ValueError("a query is ranked for itself; drop it with without_own")
    labels = np.concatenate([np.asarray(gallery), np.asarray(queries)])
    codes = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    # One more gallery image of no label stands for every row that names none.
    gallery_codes, query_codes = np.append(codes[: len(gallery)], -1), codes[len(gallery) :]
    columns, places = max(ranks.shape[1], 1), [np.zeros(0, np.int64)]
    step = max(RANK_ELEMENTS // columns, 1)
    for start in range(0, len(ranks), step):
        block = np.minimum(ranks[start : start + step], len(gallery))
        relevant = gallery_codes.take(block) == query_codes[start : start + step, None]
        places.append(np.flatnonzero(relevant) + start * columns)
    query, column = np.divmod(np.concatenate(places), columns)
    images = np.bincount(gallery_codes[:-1], minlength=codes.max(initial=0) + 1)
    return Hits(query, column + 1, images[query_codes] - (own is not None))


def hits_among(ranks: np.ndarray, relevant: Sequence[np.ndarray]) -> Hits:
    """The hits of rankings in which a query may have any set of relevant answers.

    Args:
        ranks: `(n, columns)`, int64, best first.
        relevant: of each query, the relevant answers.
    """
    found = [np.flatnonzero(np.isin(row, rows)) for row, rows in zip(ranks, relevant, strict=True)]
    return Hits(
        np.repeat(np.arange(len(ranks)), [len(places) for places in found]),
        np.concatenate(found) + 1,
        np.array([len(rows) for rows in relevant], dtype=np.int64),
    )


def _first(hits: Hits, limit: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Query and rank of the hits up to a rank, which may differ from query to query."""
    limits = np.broadcast_to(limit, len(hits.n_relevant))
    kept = hits.rank <= limits[hits.query]
    return hits.query[kept], hits.rank[kept]


def _found(hits: Hits, limit: np.ndarray | int) -> np.ndarray:
    """`(n_queries,)`: how many relevant images there are up to a rank."""
    return np.bincount(_first(hits, limit)[0], minlength=len(hits.n_relevant))


def _found_share(hits: Hits, width: np.ndarray) -> np.ndarray:
    """`(n_queries,)`: the relevant share of the first `width` images."""
    return _share(_found(hits, width), width)


def _share(total: np.ndarray, of: np.ndarray) -> np.ndarray:
    """`total / of`; NaN where there is nothing to find."""
    return np.divide(total, of, out=np.full(len(of), np.nan), where=of > 0)


def _precision_share(hits: Hits, limit: np.ndarray | int) -> np.ndarray:
    """The precision at each hit up to `limit`, added up in rank order, over the relevant images."""
    query, rank = _first(hits, limit)
    n_queries = len(hits.n_relevant)
    hits_of_query = np.bincount(query, minlength=n_queries)
    first_hit = np.cumsum(hits_of_query) - hits_of_query
    hits_so_far = np.arange(len(query)) - first_hit[query] + 1
    # bincount adds its weights one after the other: the sum equals a plain loop's to the last bit.
    total = np.bincount(query, weights=hits_so_far / rank, minlength=n_queries)
    return _share(total, hits.n_relevant)


def average_precision(
    ranks: np.ndarray,
    gallery_products: np.ndarray,
    query_products: np.ndarray,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """The challenge's average precision of each query; arguments as :func:`hits_of_ranks`.

    `AP = sum over k <= 1000 of P@k * rel@k, divided by GTP`, where GTP is the number of gallery
    images that the query's product has, not capped at 1,000.

    Returns:
        `(n_queries,)`, float64, 0..1. A query whose product has no gallery image scores 0.

    Raises:
        ValueError: see :func:`hits_of_ranks`.
    """
    hits = hits_of_ranks(ranks, gallery_products, query_products, own)
    return np.nan_to_num(_precision_share(hits, MAX_PREDICTIONS))


def global_average_precision(
    confidence: np.ndarray, right: np.ndarray, has_match: np.ndarray
) -> float:
    """GAP, or micro-AP: one answer a query, all queries ranked by confidence (Perronnin 2009).

    `sum over i of P(i) * rel(i), divided by M`: P(i) is the precision among the i most confident
    answers, M the number of queries that have a match. Queries of equal confidence are taken
    together, the precision of each being that at the end of the tie, so that their order is
    of no account.

    Args:
        confidence: `(n_queries,)`, similarity to the first image of the ranking.
        right: `(n_queries,)`, bool: whether that image is relevant; never for a distractor.
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


def _recall(hits: Hits, k: int) -> np.ndarray:
    return np.where(hits.n_relevant > 0, _found(hits, k) > 0, np.nan)


METRICS: dict[str, Callable[[Hits], np.ndarray]] = {
    # The challenge's: the sum of P@k at the hits with k <= 1000, over the R relevant images.
    "mAP@1000": lambda hits: _precision_share(hits, MAX_PREDICTIONS),
    # The universal embedding challenge's: the relevant share of the first min(R, 5).
    "mP@5": lambda hits: _found_share(hits, np.minimum(hits.n_relevant, 5)),
    # As metric learning has it: 1 where a relevant image is among the first k, else 0.
    **{f"R@{k}": partial(_recall, k=k) for k in RECALLS},
    # Musgrave et al. (2020): the same as mAP over the first R ranks.
    "MAP@R": lambda hits: _precision_share(hits, hits.n_relevant),
    "R-precision": lambda hits: _found_share(hits, hits.n_relevant),
}
"""Of each query, `(n_queries,)`, float64, 0..1, NaN where the gallery has nothing to find."""


def per_query(hits: Hits) -> pd.DataFrame:
    """Every metric of every query: a row for each query, a column for each of :data:`METRICS`.

    Args:
        hits: of rankings with a column for each relevant image of a query at least; what is
            deeper counts as not found.
    """
    return pd.DataFrame({name: metric(hits) for name, metric in METRICS.items()})


def check_ranks(ranks: Any, n_queries: int, n_gallery: int) -> None:
    """Refuse an array that the evaluator would refuse, or score wrongly without a word.

    Raises:
        UserError: for another type, dtype or shape, an index outside the gallery, a repeat.
    """
    if not isinstance(ranks, np.ndarray):
        raise UserError(f"the ranker returned {type(ranks).__name__}, not a numpy array")
    if not np.issubdtype(ranks.dtype, np.integer):
        raise UserError(f"the ranker's array has dtype {ranks.dtype}; it must be an integer type")
    if ranks.shape != (n_queries, MAX_PREDICTIONS):
        raise UserError(
            f"the ranker's array has shape {ranks.shape}; it must be {(n_queries, MAX_PREDICTIONS)}"
        )
    # A gallery of fewer images is followed by indexes that name none, up to the full width.
    allowed = max(n_gallery, MAX_PREDICTIONS)
    outside = (ranks < 0) | (ranks >= allowed)
    early = ranks[:, :n_gallery] >= n_gallery
    for bad, where in ((outside, ";"), (early, " in front of images of the gallery;")):
        for row, column in np.argwhere(bad)[:1]:
            raise UserError(
                f"row {row} of the ranker's array names gallery row {ranks[row, column]}{where} "
                f"the gallery has rows 0 to {n_gallery - 1}"
            )
    in_order = np.sort(ranks, axis=1)
    repeats = np.flatnonzero((in_order[:, 1:] == in_order[:, :-1]).any(axis=1))
    if len(repeats):
        raise UserError(f"row {repeats[0]} of the ranker's array names a gallery row twice")
