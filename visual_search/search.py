"""Exact nearest-neighbour search: blocks of the gallery, partial sorts, ties by index."""

from __future__ import annotations

import torch
from torch import Tensor

# Queries x gallery rows compared at once: 2^26 fp32 similarities are 256 MB.
BLOCK_ELEMENTS = 1 << 26


def top_k(
    queries: Tensor, gallery: Tensor, k: int, block_elements: int = BLOCK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """The `k` gallery rows most similar to each query, by inner product.

    Memory beside the two matrices stays under a few times `block_elements` numbers, however
    large the gallery is. Equal similarities are ordered by gallery index, so the answer does
    not depend on the blocks.

    Args:
        queries: `(n_queries, dimension)`, floating point.
        gallery: `(n_gallery, dimension)`, same type and device as `queries`.
        k: neighbours per query; fewer columns come back when the gallery is smaller.
        block_elements: similarities computed at once.

    Returns:
        Similarities `(n_queries, min(k, n_gallery))`, best first, and gallery row indexes
        (int64) of the same shape.

    Raises:
        ValueError: when the dimensions differ or `k` is below 1.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} must be matrices "
            "of the same number of columns"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    n_queries, n_gallery = len(queries), len(gallery)
    k = min(k, n_gallery)
    scores = queries.new_empty((n_queries, k))
    indexes = torch.empty((n_queries, k), dtype=torch.int64, device=queries.device)
    # A block of the gallery holds at least a few times k rows, or its partial sort saves nothing.
    gallery_step = max(min(n_gallery, 65536), 4 * k, 1)
    query_step = max(block_elements // gallery_step, 1)
    for start in range(0, n_queries, query_step):
        rows = slice(start, start + query_step)
        scores[rows], indexes[rows] = _top_k_of_block(queries[rows], gallery, k, gallery_step)
    return scores, indexes


def _top_k_of_block(
    queries: Tensor, gallery: Tensor, k: int, gallery_step: int
) -> tuple[Tensor, Tensor]:
    best_scores = queries.new_empty((len(queries), 0))
    best_indexes = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(gallery), gallery_step):
        similarities = queries @ gallery[start : start + gallery_step].T
        scores, columns = stable_top_k(similarities, min(k, similarities.shape[1]))
        # Earlier blocks hold smaller indexes and stand first, so a stable merge keeps the order.
        merged = torch.cat([best_scores, scores], dim=1)
        merged_indexes = torch.cat([best_indexes, columns + start], dim=1)
        best_scores, chosen = stable_top_k(merged, min(k, merged.shape[1]))
        best_indexes = merged_indexes.gather(1, chosen)
    return best_scores, best_indexes


def stable_top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k, dim=1)` with equal values ordered by column; values must not be NaN.

    `torch.topk` picks any of the values that tie at the k-th place. Rows in which that happened
    are rare with real embeddings and are sorted in full.
    """
    _, columns = values.topk(k, dim=1, sorted=False)
    columns = columns.sort(dim=1).values
    best, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if k == 0 or k == values.shape[1]:
        return best, columns
    last = best[:, -1:]
    tied = (values == last).sum(dim=1) > (best == last).sum(dim=1)
    if tied.any():
        ordered, positions = values[tied].sort(dim=1, descending=True, stable=True)
        best[tied], columns[tied] = ordered[:, :k], positions[:, :k]
    return best, columns
