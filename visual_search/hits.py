"""Where the right photos of queries stand: what every retrieval metric is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hits:
    """Where the right photos stand in the rankings of queries."""

    query: np.ndarray
    """`(hits,)`, int64, rising."""
    rank: np.ndarray
    """`(hits,)`, int64, from 1, rising within a query; at most `depth`."""
    wanted: np.ndarray
    """`(n_queries,)`, int64: right photos in the gallery, at whatever rank; a query that is a
    photo of the gallery itself does not count."""
    depth: int
    """The last rank that was looked at."""


def hits_of_ranks(
    ranks: np.ndarray, gallery: np.ndarray, queries: np.ndarray, own: np.ndarray | None = None
) -> Hits:
    """The hits of ready rankings.

    Args:
        ranks: `(n_queries, columns)`, gallery row indexes, best first, without the query itself;
            an index at or above the number of gallery photos names none.
        gallery: `(n_gallery,)`, the label of each photo.
        queries: `(n_queries,)`, the label of each query.
        own: `(n_queries,)`, where the queries are photos of the gallery, the row of each.
    """
    gallery_codes, query_codes = shared_codes(gallery, queries)
    # One more gallery photo of no product stands for every index that names none.
    padded = np.append(gallery_codes, -1)
    query, place = np.nonzero(padded[np.minimum(ranks, len(gallery))] == query_codes[:, None])
    return Hits(query, place + 1, right_photos(gallery_codes, query_codes, own), ranks.shape[1])


def hits_among(ranks: np.ndarray, right: Sequence[np.ndarray]) -> Hits:
    """The hits of rankings in which a query may have any set of right answers.

    Args:
        ranks: `(n, columns)`, int64, best first.
        right: of each query, the right answers.
    """
    found = [np.flatnonzero(np.isin(row, rows)) for row, rows in zip(ranks, right, strict=True)]
    return Hits(
        np.repeat(np.arange(len(ranks)), [len(places) for places in found]),
        np.concatenate(found) + 1,
        np.array([len(rows) for rows in right], dtype=np.int64),
        ranks.shape[1],
    )


def shared_codes(gallery: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both sides as numbers from 0."""
    labels = np.concatenate([np.asarray(gallery), np.asarray(queries)])
    codes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return codes[: len(gallery)], codes[len(gallery) :]


def right_photos(gallery: np.ndarray, queries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Of each query, how many right photos the gallery has besides itself, by codes."""
    photos = np.bincount(gallery, minlength=queries.max(initial=0) + 1)
    return photos[queries] - (own is not None)
