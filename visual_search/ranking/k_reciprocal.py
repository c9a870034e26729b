"""k-reciprocal re-ranking, sparse and by blocks.

Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding (CVPR 2017). The
published code holds several n x n matrices; here an image's encoding is the list of its few
non-zero weights, and only a block of queries meets the whole gallery at once. Distances are
1 - cosine, which the published code has up to a factor that it takes from each row's maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.common.ranges import CountFrom1, Share
from visual_search.ranking.rerank_steps import nearest_others
from visual_search.ranking.search import first_copies, stable_top_k

# Similarities of a block of queries to the whole gallery: 2^24 in fp32 are 64 MB.
BLOCK_ELEMENTS = 1 << 24
# Images whose encodings are made at once.
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class KReciprocal:
    """Rank by the overlap of two images' k-reciprocal neighbourhoods and by their similarity.

    Looks at queries and gallery together. The score is
    `weight * cosine + (1 - weight) * (1 - Jaccard distance)`.
    """

    k1: CountFrom1 = 20
    """Neighbours among which reciprocal ones are sought (paper, section 3.2)."""
    k2: CountFrom1 = 6
    """Neighbours, itself among them, whose encodings are averaged (section 3.4); 1: none are."""
    weight: Share = 0.3
    """Of the original similarity: lambda of the paper's equation 12."""

    def __post_init__(self) -> None:
        if self.k1 >= 1 and self.k2 > self.k1 + 1:  # what is below 1, its range refuses
            raise UserError(f"k2 is {self.k2}; it can be k1 + 1, {self.k1 + 1}, at the most")

    def rank(
        self, queries: Tensor, gallery: Tensor, k: int, block_elements: int = BLOCK_ELEMENTS
    ) -> Tensor:
        """The `k` best gallery rows of each query, `(n_queries, min(k, n_gallery))`, int64."""
        both = torch.cat([queries, gallery])
        _, others = nearest_others(both, min(self.k1, len(both) - 1))
        near = torch.cat([torch.arange(len(both), device=both.device)[:, None], others], dim=1)
        keys, values = encodings = _averaged(_encodings(both, near), near[:, : self.k2])
        of_gallery = keys >= len(queries) * len(both)
        keys, values = keys[of_gallery], values[of_gallery]
        turned, order = (keys % len(both) * len(both) + keys // len(both)).sort()
        by_column = turned, values[order]
        step = max(block_elements // max(len(gallery), 1), 1)
        first, found = first_copies(gallery), []
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            rows = torch.arange(start, start + len(block), device=keys.device)
            overlap = _overlap(encodings, rows, by_column, len(both), len(gallery))
            cosines = block @ gallery.T
            scores = self.weight * (cosines if first is None else cosines[:, first])
            scores += (1 - self.weight) * overlap / (2 - overlap)
            found.append(stable_top_k(scores, k)[1])
        return torch.cat(found)


Sparse = tuple[Tensor, Tensor]
"""A sparse n x n matrix: rising keys `row * n + column` of its entries, and their values."""


def _entries_of(matrix: Sparse, rows: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of several rows, in their order: which of `rows` each is of, column and value."""
    keys, values = matrix
    first = torch.searchsorted(keys, rows * n)
    counts = torch.searchsorted(keys, (rows + 1) * n) - first
    asked = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    places = (first - before)[asked] + torch.arange(len(asked), device=rows.device)
    return asked, keys[places] % n, values[places]


def _joined(parts: list[Sparse]) -> Sparse:
    """A matrix from blocks of its rows."""
    keys, values = zip(*parts, strict=True)
    return torch.cat(keys), torch.cat(values)


def _encodings(vectors: Tensor, near: Tensor) -> Sparse:
    """Each image's expanded k-reciprocal set, weighted by exp(-distance), rows adding up to 1."""
    n = len(near)
    half = near[:, : round((near.shape[1] - 1) / 2) + 1]
    reciprocal, half_reciprocal = _reciprocal(near), _reciprocal(half)
    parts = []
    for start in range(0, n, BLOCK_ROWS):
        keys = _expanded_sets(near, reciprocal, half, half_reciprocal, start)
        rows = keys // n
        cosines = (vectors[rows] * vectors[keys % n]).sum(dim=1)
        weights = torch.exp(cosines - 1)
        local = rows - start
        totals = weights.new_zeros(min(BLOCK_ROWS, n - start)).index_add_(0, local, weights)
        parts.append((keys, weights / totals[local]))
    return _joined(parts)


def _reciprocal(near: Tensor) -> Tensor:
    """Which of `near[i]` have i among their own."""
    n = len(near)
    own = torch.arange(n, device=near.device)[:, None]
    return torch.isin(near * n + own, own * n + near)


def _expanded_sets(
    near: Tensor, reciprocal: Tensor, half: Tensor, half_reciprocal: Tensor, start: int
) -> Tensor:
    """Members of R*(i, k1) of a block of images i, as sorted keys `i * n + member`.

    Paper, equation 3: the half-size reciprocal set of a member c joins when more than two
    thirds of it are members already.
    """
    n = len(near)
    block = near[start : start + BLOCK_ROWS]
    is_member = reciprocal[start : start + BLOCK_ROWS]
    own = torch.arange(start, start + len(block), device=near.device)[:, None]
    members = (own * n + block)[is_member]
    # (block, k1 + 1, k1 / 2 + 1): the half-size set of each candidate, as keys of image i.
    theirs, is_theirs = own[:, :, None] * n + half[block], half_reciprocal[block]
    shared = (torch.isin(theirs, members) & is_theirs).sum(dim=2)
    joins = is_member & (3 * shared > 2 * is_theirs.sum(dim=2))
    return torch.cat([members, theirs[joins[:, :, None] & is_theirs]]).unique()


def _averaged(encodings: Sparse, near: Tensor) -> Sparse:
    """The mean encoding of each image's `near`, itself among them (equation 11)."""
    n, k = near.shape
    if k == 1:
        return encodings
    parts = []
    for start in range(0, n, BLOCK_ROWS):
        asked, columns, values = _entries_of(
            encodings, near[start : start + BLOCK_ROWS].reshape(-1), n
        )
        keys, where = ((start + asked // k) * n + columns).unique(return_inverse=True)
        parts.append((keys, values.new_zeros(len(keys)).index_add_(0, where, values / k)))
    return _joined(parts)


def _overlap(encodings: Sparse, rows: Tensor, by_column: Sparse, n: int, n_gallery: int) -> Tensor:
    """Sum of the smaller of the two weights at each place, `(len(rows), n_gallery)`.

    Rows add up to 1, so the sum of the larger ones is 2 less this (equation 10). The gallery,
    which `by_column` has turned, is the last of the n images.
    """
    query, columns, ours = _entries_of(encodings, rows, n)
    entry, images, theirs = _entries_of(by_column, columns, n)
    smaller = torch.minimum(ours[entry], theirs)
    cells = query[entry] * n_gallery + images - (n - n_gallery)
    overlap = smaller.new_zeros(len(rows) * n_gallery).index_add_(0, cells, smaller)
    return overlap.view(len(rows), n_gallery)
