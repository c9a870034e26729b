"""Exact nearest-neighbour search: tiles of similarities, a threshold, ties by index.

The matrix product is most of the work. So that the rest stays small, each query has a threshold:
only what beats it is looked at, a few thousand of a million. It is first guessed from a sample of
the gallery, and raised to the k-th best score when the candidates are sifted; where the guess was
too high, which is seen at the end, the query is searched again without one. Candidates are 64-bit
keys that hold score and index: one partition of integers selects by score and breaks ties by index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

# Similarities computed at once: 2^20 in fp32 are 4 MB, which stay in the last-level cache
# while they are compared with the thresholds.
BLOCK_ELEMENTS = 1 << 20
# Up to so many such blocks in all, starting threads and sifting would cost more than they save;
# of a gallery of at most so many rows for each number of a block (8,192), which is read whole.
FEW_BLOCKS, SMALL_GALLERY = 8, 2**-7
# Rows of such a tile: enough that the product reads the gallery's rows seldom.
TILE_QUERIES = 1024
# Candidates kept at once, of all queries together: 2^25 keys are 256 MB.
CANDIDATE_ELEMENTS = 1 << 25
# Of a query's best k, how many should lie in the sample that its first threshold is guessed from:
# 20 of 1,000 cost 2 % more products, and let a third of the candidates in that none would.
SAMPLED_BEST = 20

_INDEX_MASK = (1 << 32) - 1
_EMPTY = torch.iinfo(torch.int64).min

Part = TypeVar("Part")
Answer = TypeVar("Answer")


class Rows(Protocol):
    """Rows that are made when they are read, such as :class:`visual_search.codes.Codes`."""

    shape: tuple[int, int]
    ndim: int

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """`(n, dimension)`, floating point."""
        ...


Matrix = Tensor | np.ndarray | Rows
"""Rows of numbers. An array may be a memory map of float16 or float32, read block by block."""


def top_k(
    queries: Tensor, gallery: Matrix, k: int, block_elements: int = BLOCK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """The `k` gallery rows most similar to each query, by inner product in float32.

    Memory beside the two matrices is some `20 * k` bytes for each query (200 MB where all is small
    and sorted whole) and does not grow with the gallery, which may be a memory map on disk. Equal
    similarities are ordered by gallery index. The answer is that of a full stable sort of the
    similarities, whatever the blocks; only the similarities' own last bits may depend on the
    shapes that the matrix product is given, so two photos that are the same to the last bit can be
    1e-7 apart.

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
    small = len(gallery) <= SMALL_GALLERY * block_elements
    if small and len(queries) * len(gallery) <= FEW_BLOCKS * block_elements:
        similarities = queries.detach().float() @ _rows(gallery[:], queries.device).detach().T
        return stable_top_k(similarities.nan_to_num_(-torch.inf, torch.inf, -torch.inf), k)
    threads = 1 if queries.is_cuda else torch.get_num_threads()
    tile = max(min(-(-len(queries) // threads), TILE_QUERIES, block_elements), 1)
    step = max(block_elements // tile, 1)
    at_once = max(CANDIDATE_ELEMENTS // threads // _capacity(k, step), 1)
    # As many parts as make all threads end together.
    rounds = -(-len(queries) // (at_once * threads))
    part = max(-(-len(queries) // max(rounds * threads, 1)), 1)
    search = partial(_search, gallery=gallery, k=k, step=step, tile=tile)
    keys = torch.cat(on_threads(search, queries.split(part), threads))
    return _unpack(keys)


def on_threads(
    function: Callable[[Part], Answer], parts: Sequence[Part], threads: int
) -> list[Answer]:
    """`function` of each part; each thread works alone instead of all on every operation.

    Operations on tiles are so short that waiting for each other would take as long as they do.
    """
    if threads == 1 or len(parts) == 1:
        return [function(part) for part in parts]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, parts))
    finally:
        torch.set_num_threads(threads)  # the matrix library's number is the whole process's


def stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(k, dim=1)` for float32 scores that are no NaN, equal ones by column."""
    keys = _pack(scores, torch.arange(scores.shape[1], device=scores.device))
    k = min(k, scores.shape[1])
    return _unpack(_sort_rows(_largest(keys, k)).flip(1))


def _capacity(k: int, step: int) -> int:
    """Candidates a query has room for: the best, and what comes in before the next selection."""
    return k + max(step, 2 * k)


@torch.no_grad()
def _search(queries: Tensor, gallery: Matrix, k: int, step: int, tile: int) -> Tensor:
    """Keys of the best `k`, best first, `(n_queries, k)`."""
    queries = queries.float()
    guesses = _guess_thresholds(queries, gallery, k, tile)
    keys = _pass(queries, gallery, k, step, tile, guesses)
    # Minus infinity is the smallest number that a key is made of, so an empty slot shows.
    again = (keys == _EMPTY).any(dim=1)
    if again.any():
        keys[again] = _pass(queries[again], gallery, k, step, tile, None)
    return keys


def _pass(
    queries: Tensor, gallery: Matrix, k: int, step: int, tile: int, thresholds: Tensor | None
) -> Tensor:
    parts = queries.split(tile)
    first = [None] * len(parts) if thresholds is None else thresholds.split(tile)
    groups = [
        _Candidates(part, k, step, threshold) for part, threshold in zip(parts, first, strict=True)
    ]
    for start in range(0, len(gallery) if k else 0, step):
        block = _rows(gallery[start : start + step], queries.device)
        for group in groups:
            group.add(group.queries @ block.T, start)
    return torch.cat([group.best() for group in groups])


def _guess_thresholds(queries: Tensor, gallery: Matrix, k: int, tile: int) -> Tensor | None:
    """A score for each query that k gallery rows most likely exceed, `(n_queries, 1)`.

    None where guessing would cost more than it saves.
    """
    if k < 10 * SAMPLED_BEST or len(gallery) < 8 * k:
        return None
    stride = k // SAMPLED_BEST
    sample = _rows(gallery[::stride], queries.device)
    # The rank in the sample is about Poisson: five deviations above its mean.
    rank = min(SAMPLED_BEST + round(5 * SAMPLED_BEST**0.5), len(sample))
    found = []
    for part in queries.split(max(tile // 4, 1)):
        similarities = (part @ sample.T).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        found.append(_kth_largest(similarities, rank))
    return torch.cat(found)


def _rows(rows: Matrix, device: torch.device) -> Tensor:
    # A copy, for a memory map may be read-only.
    tensor = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
    return tensor.to(device, torch.float32)


class _Candidates:
    """The best of what a group of queries has met so far."""

    def __init__(self, queries: Tensor, k: int, step: int, threshold: Tensor | None) -> None:
        self.queries, self.k = queries, k
        shape = len(queries), _capacity(k, step)
        self.keys = torch.full(shape, _EMPTY, dtype=torch.int64, device=queries.device)
        self.count = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        self.fullest = 0
        """The largest `count`."""
        self.threshold = threshold
        """`(n, 1)`, what a score has to exceed; None takes all."""

    def add(self, similarities: Tensor, first: int) -> None:
        """Take in the similarities to the gallery rows from `first` on."""
        width = similarities.shape[1]
        if self.fullest + width > self.keys.shape[1]:
            self._select()
        if self.threshold is None:
            columns = torch.arange(first, first + width, device=similarities.device)
            numbers = similarities.nan_to_num(-torch.inf, torch.inf, -torch.inf)
            self.keys[:, self.fullest : self.fullest + width] = _pack(numbers, columns)
            self.count += width
            self.fullest += width
            if self.fullest >= self.k:
                self._select()
            return
        # What equals the k-th best so far has a larger index, and loses. No NaN exceeds anything.
        places = _where(similarities > self.threshold)
        rows = places // width
        hits = torch.bincount(rows, minlength=len(self.queries))
        # The hits of a row stand together: number them from the row's count on.
        shift = self.keys.shape[1] * torch.arange(len(hits), device=hits.device)
        shift += self.count - (hits.cumsum(0) - hits)
        # index_select and scatter_ are several times faster than indexing with brackets.
        slots = shift.index_select(0, rows) + torch.arange(len(places), device=places.device)
        scores = similarities.view(-1).index_select(0, places)
        keys = _pack(scores, places - rows * width + first)
        self.keys.view(-1).scatter_(0, slots, keys)
        self.count += hits
        self.fullest = int(self.count.max())

    def best(self) -> Tensor:
        """Keys of the best k, best first; :data:`_EMPTY` at the end where there were fewer."""
        self._select()
        return _sort_rows(self.keys[:, : self.k]).flip(1)

    def _select(self) -> None:
        """Keep the best k of each query; where there are k, the threshold is the last of them."""
        k = self.k
        if self.fullest > k:
            filled = self.keys[:, : self.fullest]
            filled[:, :k] = _largest(filled, k)
            self.keys[:, k : self.fullest] = _EMPTY
            short = self.count < k
            if short.any():  # empty slots belong behind the candidates
                filled[short, :k] = _sort_rows(filled[short, :k]).flip(1)
        self.count.clamp_(max=k)
        self.fullest = min(self.fullest, k)
        if self.fullest == k and k:
            last = self.keys[:, :k].amin(dim=1, keepdim=True)
            known = self.threshold if self.threshold is not None else -torch.inf
            self.threshold = torch.where(last == _EMPTY, known, _unpack(last)[0])


def _pack(scores: Tensor, indexes: Tensor) -> Tensor:
    """One integer for a score and an index: larger for a better score, then a smaller index."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: minus zero ties with zero
    # IEEE 754 numbers order like integers once the negative ones are turned round.
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    # In place, for fresh memory costs more than the arithmetic on it.
    keys = ordered.long().bitwise_left_shift_(32)
    return keys.bitwise_or_(_INDEX_MASK - indexes)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and indexes of keys."""
    ordered = (keys >> 32).int()
    bits = (ordered >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(ordered)
    return bits.view(torch.float32), keys.bitwise_not().bitwise_and_(_INDEX_MASK)


def _where(mask: Tensor) -> Tensor:
    """Places of what is true in a matrix, counted row by row."""
    if mask.is_cuda:
        return mask.view(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of each row, `(n, 1)`."""
    if values.is_cuda:
        return values.topk(k, dim=1).values[:, -1:]
    cut = values.shape[1] - k
    return torch.from_numpy(np.partition(values.numpy(), cut, axis=1)[:, cut : cut + 1])


def _largest(keys: Tensor, k: int) -> Tensor:
    """The `k` largest of each row, in any order."""
    if k == keys.shape[1]:
        return keys
    if keys.is_cuda:
        return keys.topk(k, dim=1, sorted=False).values
    # numpy partitions integers with vector instructions: several times faster than torch here.
    cut = keys.shape[1] - k
    return torch.from_numpy(np.partition(keys.numpy(), cut, axis=1)[:, cut:])


def _sort_rows(keys: Tensor) -> Tensor:
    """Each row in rising order."""
    return keys.sort(dim=1).values if keys.is_cuda else torch.from_numpy(np.sort(keys.numpy()))
