"""Retrieval metrics. The challenge's mAP is defined here and nowhere else."""

from __future__ import annotations

import numpy as np

MAX_PREDICTIONS = 1000
"""Columns of a submission: the 1,000 most similar gallery photos of each query."""
# Ranks looked at together.
HIT_ELEMENTS = 1 << 16


def without_own(ranks: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A ranking of photos against each other, without the query itself, one column fewer.

    The query is known by its gallery row, not by its place: among equal photos it need not come
    first, and among more than there are columns it need not be there at all. Then the last column
    goes.

    Args:
        ranks: `(n_queries, columns)`, gallery row indexes, each at most once in a row.
        own: `(n_queries,)`, the gallery row of each query.
    """
    goes = ranks == own[:, None]
    goes[~goes.any(axis=1), -1] = True
    return ranks[~goes].reshape(len(ranks), ranks.shape[1] - 1)


def average_precision(
    ranks: np.ndarray,
    gallery_products: np.ndarray,
    query_products: np.ndarray,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """The challenge's average precision of each query.

    `AP = sum over k <= 1000 of P@k * rel@k, divided by GTP`, where GTP is the number of gallery
    photos that the query's product has, not capped at 1,000. Only the hits are visited, and the
    terms are added in rank order, so the result equals the plain loop to the last bit.

    Args:
        ranks: `(n_queries, columns)`, integer gallery row indexes, best first. An index at or
            above the number of gallery photos names no photo and is never relevant: it fills up
            the rows of a gallery smaller than the number of columns.
        gallery_products: `(n_gallery,)`, the product of each gallery photo.
        query_products: `(n_queries,)`, the product of each query.
        own: `(n_queries,)`, where the queries are photos of the gallery, the row of each: GTP does
            not count it, and `ranks` must not name it (:func:`without_own`).

    Returns:
        `(n_queries,)`, float64, 0..1. A query whose product has no gallery photo scores 0.

    Raises:
        ValueError: when the shapes do not fit together, or a query is ranked for itself.
    """
    gallery_products, query_products = np.asarray(gallery_products), np.asarray(query_products)
    if ranks.ndim != 2 or len(ranks) != len(query_products):
        raise ValueError(
            f"ranks {ranks.shape} must have a row for each of {len(query_products)} queries"
        )
    if own is not None and (ranks == own[:, None]).any():
        raise ValueError("a query is ranked for itself; drop it with without_own")
    _, codes = np.unique(np.concatenate([gallery_products, query_products]), return_inverse=True)
    # One more gallery photo of no product stands for every index that names none.
    gallery_codes = np.append(codes[: len(gallery_products)], -1)
    query_codes = codes[len(gallery_products) :]
    photos_of_product = np.bincount(gallery_codes[:-1], minlength=codes.max(initial=0) + 1)

    query, position = _hits(
        ranks[:, :MAX_PREDICTIONS], gallery_codes.astype(np.int32), query_codes.astype(np.int32)
    )
    total = precision_sums(query, position + 1, len(query_codes))
    wanted = photos_of_product[query_codes] - (own is not None)
    return np.divide(total, wanted, out=np.zeros(len(query_codes)), where=wanted > 0)


def _hits(
    ranks: np.ndarray, gallery_codes: np.ndarray, query_codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Query and column of each right photo, in the order of the rows.

    Some rows at a time: what is between the steps stays in the cache.
    """
    columns, found = max(ranks.shape[1], 1), [np.zeros(0, dtype=np.int64)]
    step = max(HIT_ELEMENTS // columns, 1)
    for start in range(0, len(ranks), step):
        block = np.minimum(ranks[start : start + step], len(gallery_codes) - 1)
        same = gallery_codes.take(block) == query_codes[start : start + step, None]
        found.append(np.flatnonzero(same) + start * columns)
    query, position = np.divmod(np.concatenate(found), columns)
    return query, position


def precision_sums(query: np.ndarray, rank: np.ndarray, n_queries: int) -> np.ndarray:
    """Of each query, the sum of the precision at its hits: the numerator of average precision.

    Args:
        query: `(hits,)`, the query of each, rising.
        rank: `(hits,)`, from 1, rising within a query; hits that do not count are left out at
            the end of a query only.
        n_queries: how many there are.

    Returns:
        `(n_queries,)`, float64, with the terms added in rank order.
    """
    hits_of_query = np.bincount(query, minlength=n_queries)
    first_hit = np.cumsum(hits_of_query) - hits_of_query
    hits_so_far = np.arange(len(query)) - first_hit[query] + 1
    # bincount adds its weights one after the other, in rank order.
    return np.bincount(query, weights=hits_so_far / rank, minlength=n_queries)


def mean_average_precision(
    ranks: np.ndarray, gallery_products: np.ndarray, query_products: np.ndarray
) -> float:
    """The challenge's score: the mean of :func:`average_precision` over the queries, 0..1.

    Raises:
        ValueError: when there is no query, or the shapes do not fit together.
    """
    if len(query_products) == 0:
        raise ValueError("mAP is not defined without a query")
    return float(np.mean(average_precision(ranks, gallery_products, query_products)))
