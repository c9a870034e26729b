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
        encodings = _averaged(_encodings(both, near), near[:, : self.k2])
        of_column = encodings.rows_from(len(queries)).transposed()
        step = max(block_elements // max(len(gallery), 1), 1)
        first, found = first_copies(gallery), []
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            overlap = _overlap(encodings, start, len(block), of_column, len(gallery))
            cosines = block @ gallery.T
            scores = self.weight * (cosines if first is None else cosines[:, first])
            scores += (1 - self.weight) * overlap / (2 - overlap)
            found.append(stable_top_k(scores, k)[1])
        return torch.cat(found)


@dataclass(frozen=True)
class _Sparse:
    """A sparse matrix by rows: entries `first[r]` to `first[r + 1]` belong to row r."""

    first: Tensor
    columns: Tensor
    values: Tensor
    width: int

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> _Sparse:
        """From entries in order of their rows."""
        counts = torch.bincount(rows, minlength=shape[0])
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(first, columns, values, shape[1])

    def rows_from(self, row: int) -> _Sparse:
        """The rows from `row` on."""
        start = self.first[row]
        return _Sparse(
            self.first[row:] - start, self.columns[start:], self.values[start:], self.width
        )

    def transposed(self) -> _Sparse:
        """Columns as rows."""
        n_rows = len(self.first) - 1
        rows = torch.arange(n_rows, device=self.first.device).repeat_interleave(self.first.diff())
        order = self.columns.argsort(stable=True)
        return self.of(self.columns[order], rows[order], self.values[order], (self.width, n_rows))

    def entries_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Entries of several rows: for each, which of `rows` it is of, and its position."""
        counts = (self.first[1:] - self.first[:-1])[rows]
        asked = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        within = torch.arange(len(asked), device=rows.device) - before[asked]
        return asked, self.first[rows][asked] + within


def _encodings(vectors: Tensor, near: Tensor) -> _Sparse:
    """Each image's expanded k-reciprocal set, weighted by exp(-distance), rows adding up to 1."""
    n = len(near)
    half = near[:, : round((near.shape[1] - 1) / 2) + 1]
    reciprocal, half_reciprocal = _reciprocal(near), _reciprocal(half)
    parts = []
    for start in range(0, n, BLOCK_ROWS):
        keys = _expanded_sets(near, reciprocal, half, half_reciprocal, start)
        rows, columns = keys // n, keys % n
        cosines = (vectors[rows] * vectors[columns]).sum(dim=1)
        weights = torch.exp(cosines - 1)
        local = rows - start
        totals = weights.new_zeros(min(BLOCK_ROWS, n - start)).index_add_(0, local, weights)
        parts.append((rows, columns, weights / totals[local]))
    rows, columns, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Sparse.of(rows, columns, values, (n, n))


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


def _averaged(encodings: _Sparse, near: Tensor) -> _Sparse:
    """The mean encoding of each image's `near`, itself among them (equation 11)."""
    if near.shape[1] == 1:
        return encodings
    n, parts = len(near), []
    for start in range(0, n, BLOCK_ROWS):
        asked, places = encodings.entries_of(near[start : start + BLOCK_ROWS].reshape(-1))
        rows = start + asked // near.shape[1]
        keys, where = (rows * n + encodings.columns[places]).unique(return_inverse=True)
        values = encodings.values.new_zeros(len(keys))
        values.index_add_(0, where, encodings.values[places] / near.shape[1])
        parts.append((keys // n, keys % n, values))
    rows, columns, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Sparse.of(rows, columns, values, (n, n))


def _overlap(
    encodings: _Sparse, start: int, count: int, of_column: _Sparse, n_gallery: int
) -> Tensor:
    """Sum of the smaller of the two weights at each place, `(count, n_gallery)`.

    Rows add up to 1, so the sum of the larger ones is 2 less this (equation 10).
    """
    rows = torch.arange(start, start + count, device=encodings.first.device)
    query, places = encodings.entries_of(rows)
    entry, met = of_column.entries_of(encodings.columns[places])
    smaller = torch.minimum(encodings.values[places][entry], of_column.values[met])
    cells = query[entry] * n_gallery + of_column.columns[met]
    overlap = smaller.new_zeros(count * n_gallery).index_add_(0, cells, smaller)
    return overlap.view(count, n_gallery)
