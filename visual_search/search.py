"""Exact nearest-neighbour search: tiles of similarities, a threshold, ties by index.

The matrix product is most of the work. So that the rest stays small, each query remembers the
score of its k-th best candidate so far: of a later tile only what beats it is looked at, a few
thousand of a million. Candidates are 64-bit keys that hold score and index, so that one partition
of integers selects by score and breaks ties by index.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

# Similarities computed at once: 2^20 in fp32 are 4 MB, which stay in the last-level cache
# while they are compared with the thresholds.
BLOCK_ELEMENTS = 1 << 20
# Rows of such a tile: enough that the product reads the gallery's rows seldom.
TILE_QUERIES = 1024
# Candidates kept at once, of all queries together: 2^25 keys are 256 MB.
CANDIDATE_ELEMENTS = 1 << 25

_INDEX_MASK = (1 << 32) - 1
_EMPTY = torch.iinfo(torch.int64).min

Matrix = Tensor | np.ndarray
"""Rows of numbers. An array may be a memory map of float16 or float32, read block by block."""


def top_k(
    queries: Tensor, gallery: Matrix, k: int, block_elements: int = BLOCK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """The `k` gallery rows most similar to each query, by inner product in float32.

    Memory beside the two matrices is some `20 * k` bytes for each query and does not grow with
    the gallery, which may be a memory map on disk. Equal similarities are ordered by gallery
    index. The answer is that of a full stable sort of the similarities, whatever the blocks;
    only the similarities' own last bits may depend on the shapes that the matrix product is given,
    so two photos that are the same to the last bit can be 1e-7 apart.

    Args:
        queries: `(n_queries, dimension)`, floating point; their device does the work.
        gallery: `(n_gallery, dimension)`, floating point, below 2^32 rows.
        k: neighbours per query; fewer columns come back when the gallery is smaller.
        block_elements: similarities computed at once.

    Returns:
        Similarities `(n_queries, min(k, n_gallery))`, float32, best first, and gallery row
        indexes (int64) of the same shape, on the device of `queries`. A similarity that is not a
        number counts as minus infinity: it comes last.

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
    k = min(k, len(gallery))
    tile = max(min(len(queries), TILE_QUERIES, block_elements), 1)
    step = max(block_elements // tile, 1)
    at_once = max(CANDIDATE_ELEMENTS // _capacity(k, step), tile)
    found = [
        _search(queries[start : start + at_once].float(), gallery, k, step, tile)
        for start in range(0, len(queries), at_once)
    ]
    keys = torch.cat(found) if found else torch.empty((0, k), dtype=torch.int64)
    return _unpack(keys.to(queries.device))


def stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(k, dim=1)` for float32 scores that are no NaN, equal ones by column."""
    keys = _pack(scores, torch.arange(scores.shape[1], device=scores.device))
    k = min(k, scores.shape[1])
    return _unpack(_by_rows(_sort_rows, _by_rows(lambda rows: _largest(rows, k), keys)).flip(1))


def _capacity(k: int, step: int) -> int:
    """Candidates a query has room for: the best, and what comes in before the next selection."""
    return k + max(step, 2 * k)


def _search(queries: Tensor, gallery: Matrix, k: int, step: int, tile: int) -> Tensor:
    """Keys of the best `k`, best first, `(n_queries, k)`."""
    groups = [
        _Candidates(queries[start : start + tile], k, step)
        for start in range(0, len(queries), tile)
    ]
    for start in range(0, len(gallery) if k else 0, step):
        block = _rows(gallery, start, start + step, queries.device)
        finite = bool(block.isfinite().all())
        for group in groups:
            similarities = group.queries @ block.T
            if not (finite and group.finite):
                similarities = similarities.nan_to_num(-torch.inf, torch.inf, -torch.inf)
            group.add(similarities, start)
    return torch.cat([group.best() for group in groups])


def _rows(matrix: Matrix, start: int, stop: int, device: torch.device) -> Tensor:
    rows = matrix[start:stop]
    # A copy, for a memory map may be read-only.
    tensor = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
    return tensor.to(device, torch.float32)


class _Candidates:
    """The best of what a group of queries has met so far."""

    def __init__(self, queries: Tensor, k: int, step: int) -> None:
        self.queries, self.k = queries, k
        self.finite = bool(queries.isfinite().all())
        shape = len(queries), _capacity(k, step)
        self.keys = torch.full(shape, _EMPTY, dtype=torch.int64, device=queries.device)
        self.count = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        self.fullest = 0
        """The largest `count`, or more."""
        self.threshold: Tensor | None = None
        """`(n, 1)`, the k-th best score at the last selection; None before the first."""

    def add(self, similarities: Tensor, first: int) -> None:
        """Take in the similarities to the gallery rows from `first` on."""
        if self.fullest + similarities.shape[1] > self.keys.shape[1]:
            self._select()
        if self.threshold is None:
            columns = torch.arange(similarities.shape[1], device=similarities.device)
            keys = _pack(similarities, columns + first)
            self.keys[:, self.fullest : self.fullest + len(columns)] = keys
            self.count += len(columns)
            self.fullest += len(columns)
            if self.fullest >= self.k:
                self._select()
            return
        # What equals the threshold has a larger index than the k that reach it, and loses.
        places = (similarities > self.threshold).view(-1).nonzero().squeeze(1)
        rows = places // similarities.shape[1]
        hits = torch.bincount(rows, minlength=len(self.queries))
        # The hits of a row stand together: number them from the row's count on.
        before = (hits.cumsum(0) - hits - self.count)[rows]
        slots = torch.arange(len(places), device=places.device) - before
        columns = places - rows * similarities.shape[1]
        keys = _pack(similarities.reshape(-1)[places], columns + first)
        self.keys.view(-1)[rows * self.keys.shape[1] + slots] = keys
        self.count += hits
        self.fullest = int(self.count.max())

    def best(self) -> Tensor:
        """Keys of the best k, best first."""
        self._select()
        return _by_rows(_sort_rows, self.keys[:, : self.k]).flip(1)

    def _select(self) -> None:
        """Keep the best k of each query, and raise the thresholds to them."""
        filled, k = self.keys[:, : self.fullest], self.k
        if self.fullest > k:
            filled[:, :k] = _by_rows(lambda keys: _largest(keys, k), filled)
            self.keys[:, k:] = _EMPTY
        self.count.clamp_(max=k)
        self.fullest = min(self.fullest, k)
        if self.fullest == k and k:
            self.threshold = _unpack(self.keys[:, :k].amin(dim=1, keepdim=True))[0]


def _pack(scores: Tensor, indexes: Tensor) -> Tensor:
    """One integer for a score and an index: larger for a better score, then a smaller index."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: minus zero ties with zero
    # IEEE 754 numbers order like integers once the negative ones are turned round.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_INDEX_MASK - indexes)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and indexes of keys."""
    ordered = (keys >> 32).int()
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), _INDEX_MASK - (keys & _INDEX_MASK)


def _largest(keys: Tensor, k: int) -> Tensor:
    """The `k` largest of each row, in any order."""
    if keys.is_cuda:
        return keys.topk(k, dim=1, sorted=False).values
    # numpy partitions integers with vector instructions: several times faster than torch here.
    cut = keys.shape[1] - k
    return torch.from_numpy(np.partition(keys.numpy(), cut, axis=1)[:, cut:])


def _sort_rows(keys: Tensor) -> Tensor:
    """Each row in rising order."""
    return keys.sort(dim=1).values if keys.is_cuda else torch.from_numpy(np.sort(keys.numpy()))


def _by_rows(function: Callable[[Tensor], Tensor], keys: Tensor) -> Tensor:
    """`function` of the rows, on as many threads as torch has: numpy alone would use one."""
    threads = 1 if keys.is_cuda else torch.get_num_threads()
    if threads == 1 or len(keys) < 2 * threads:
        return function(keys)
    with ThreadPoolExecutor(threads) as pool:
        return torch.cat(list(pool.map(function, keys.chunk(threads))))
