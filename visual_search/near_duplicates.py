"""Near-duplicates among 64-bit hashes: every pair within a Hamming distance, none missed.

Multi-index hashing (Norouzi, Punjani, Fleet: Fast Exact Search in Hamming Space with Multi-Index
Hashing, 2014): cut each hash into m pieces. If two hashes differ in at most r bits, and r + 1 is
shared out over the pieces as r_1 + 1, … r_m + 1, then in at least one piece i they differ in at
most r_i bits (pigeonhole). So only hashes whose pieces are that close have to be compared: they
lie in a few buckets of a table over all values of the piece.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np

from visual_search.cores import available_cores
from visual_search.progress import progress_bar

BITS = 64
# Comparisons at a time: their intermediate results fit into the second-level cache of a core.
BLOCK = 1 << 15
BRUTE_ROWS = 64
# Tables over longer pieces have too many buckets to go through for each flip.
LONGEST_PIECE = 20
# Nanoseconds, measured on one core; only their proportions matter, for choosing the way.
COMPARE_BRUTE, COMPARE_CANDIDATE, VISIT_ROW, VISIT_BUCKET = 2.0, 4.0, 4.0, 10.0


@dataclass(frozen=True)
class Pairs:
    """Pairs of near-duplicates, in the order of `left`, then `right`."""

    left: np.ndarray
    """`(pairs,)`, int64, rows of the first array of hashes."""
    right: np.ndarray
    """`(pairs,)`, int64, rows of the second array (or of the same, and then above `left`)."""
    distance: np.ndarray
    """`(pairs,)`, uint8, bits in which the two hashes differ."""

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True)
class Piece:
    """Some bits of a hash, and in how many of them two near-duplicates may differ there."""

    shift: int
    bits: int
    radius: int

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """The bits of each hash, `(n,)`, int64, 0..2^bits - 1."""
        mask = np.uint64((1 << self.bits) - 1)
        return ((hashes >> np.uint64(self.shift)) & mask).astype(np.int64)

    def flips(self) -> Iterator[int]:
        """Each difference of at most `radius` bits."""
        for count in range(self.radius + 1):
            for places in combinations(range(self.bits), count):
                yield sum(1 << place for place in places)


class TooManyPairs(Exception):
    """There are more pairs than were asked for; the search stopped at the first too many."""


def pairs_within(hashes: np.ndarray, radius: int, *, progress: bool = False) -> Pairs:
    """All pairs of rows, each once, whose hashes differ in at most `radius` bits.

    Args:
        hashes: `(n,)`, uint64.
        radius: 0..64, Hamming distance.
        progress: whether there is a progress bar.
    """
    return _gathered(_search(hashes, None, radius, sys.maxsize, progress), len(hashes), sys.maxsize)


def pairs_between(
    first: np.ndarray,
    second: np.ndarray,
    radius: int,
    *,
    most: int = sys.maxsize,
    progress: bool = False,
) -> Pairs:
    """All pairs of a row of `first` and a row of `second` within `radius` bits.

    Args:
        first: `(n,)`, uint64.
        second: `(m,)`, uint64.
        radius: 0..64, Hamming distance.
        most: pairs; memory holds a few times as many.
        progress: whether there is a progress bar.

    Raises:
        TooManyPairs: as soon as there are more than `most`.
    """
    return _gathered(_search(first, second, radius, most, progress), len(second), most)


Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Left rows, right rows, distances."""


def _gathered(parts: Generator[Found, None, None], columns: int, most: int) -> Pairs:
    with closing(parts):  # its threads end with it
        left, right, distance = _joined(parts, most)
    order = np.argsort(left * columns + right, kind="stable")
    return Pairs(left[order], right[order], distance[order])


def _search(
    first: np.ndarray, second: np.ndarray | None, radius: int, most: int, progress: bool
) -> Generator[Found, None, None]:
    """The cheapest of brute force and the tables; `second` is None for pairs within `first`.

    No part that it gives has more than `most` pairs: :class:`TooManyPairs`.
    """
    if not 0 <= radius <= BITS:
        raise ValueError(f"the Hamming distance must be 0..{BITS}, not {radius}")
    rows, columns = len(first), len(first if second is None else second)
    if rows * columns <= BLOCK:
        yield from (task() for task in _brute_tasks(first, second, radius, most))
        return
    plans = [_pieces(count, radius) for count in range(1, BITS // 4 + 1)]
    pieces = min(plans, key=lambda plan: _cost(plan, rows, columns))
    brute = COMPARE_BRUTE * rows * columns
    tasks = (
        _brute_tasks(first, second, radius, most)
        if brute <= _cost(pieces, rows, columns)
        else _table_tasks(first, second, radius, most, pieces)
    )
    yield from _parallel(tasks, progress)


def _pieces(count: int, radius: int) -> list[Piece]:
    """`count` pieces over the 64 bits; the longest come last and get the smallest radius."""
    lengths = [BITS // count + (i >= count - BITS % count) for i in range(count)]
    share, more = divmod(radius + 1 - count, count)
    starts = np.cumsum([0, *lengths])
    return [
        Piece(int(start), length, share + (i < more))
        for i, (start, length) in enumerate(zip(starts[:-1], lengths, strict=True))
    ]


def _cost(pieces: Sequence[Piece], rows: int, columns: int) -> float:
    """Expected nanoseconds, for hashes that are spread evenly."""
    total = 0.0
    for piece in pieces:
        if piece.radius < 0:
            continue
        if piece.bits > LONGEST_PIECE:
            return float("inf")
        buckets = 2**piece.bits
        flips = sum(comb(piece.bits, count) for count in range(piece.radius + 1))
        candidates = rows * columns / buckets
        total += flips * (
            buckets * VISIT_BUCKET + rows * VISIT_ROW + candidates * COMPARE_CANDIDATE
        )
    return total


Task = Callable[[], Found]


def _parallel(tasks: Iterable[Task], progress: bool) -> Iterator[Found]:
    """Run the tasks on all cores, a few ahead; numpy lets go of the interpreter meanwhile."""
    workers = available_cores()
    waiting: deque[Future[Found]] = deque()
    with (
        ThreadPoolExecutor(workers) as pool,
        progress_bar("near-duplicates", "step", shown=progress) as bar,
    ):
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
                bar.update()
        while waiting:
            yield waiting.popleft().result()
            bar.update()


def _brute_tasks(
    first: np.ndarray, second: np.ndarray | None, radius: int, most: int
) -> Iterator[Task]:
    others = first if second is None else second

    def blocks(start: int) -> Iterator[Found]:
        rows = first[start : start + BRUTE_ROWS]
        width = BLOCK // BRUTE_ROWS
        for column in range(start if second is None else 0, len(others), width):
            distance = np.bitwise_count(rows[:, None] ^ others[None, column : column + width])
            left, right = np.nonzero(distance <= radius)
            apart = distance[left, right]
            left, right = left + start, right + column
            keep = left < right if second is None else slice(None)
            yield left[keep], right[keep], apart[keep]

    for start in range(0, len(first), BRUTE_ROWS):

        def compare(start: int = start) -> Found:
            return _joined(blocks(start), most)

        yield compare


def _joined(parts: Iterable[Found], most: int) -> Found:
    """The parts as one.

    Raises:
        TooManyPairs: as soon as they have more than `most` pairs.
    """
    held: list[Found] = []
    count = 0
    for part in parts:
        count += len(part[0])
        if count > most:
            raise TooManyPairs
        held.append(part)
    if not held:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros(0, dtype=np.uint8)
    left, right, distance = (np.concatenate(column) for column in zip(*held, strict=True))
    return left, right, distance


class Table:
    """Hashes in the order of one of their pieces, and where each value of it begins."""

    def __init__(self, hashes: np.ndarray, piece: Piece) -> None:
        keys = piece.of(hashes)
        self.order = np.argsort(
            keys.astype(np.uint16 if piece.bits <= 16 else np.int32), kind="stable"
        )
        self.hashes = hashes[self.order]
        self.counts = np.bincount(keys, minlength=1 << piece.bits)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])


def _table_tasks(
    first: np.ndarray,
    second: np.ndarray | None,
    radius: int,
    most: int,
    pieces: Sequence[Piece],
) -> Iterator[Task]:
    for number, piece in enumerate(pieces):
        if piece.radius < 0:
            continue
        left = Table(first, piece)
        right = left if second is None else Table(second, piece)
        for flip in piece.flips():

            def look_up(
                left: Table = left, right: Table = right, flip: int = flip, number: int = number
            ) -> Found:
                rows, starts, counts = _partners(left, right, flip)
                # What an earlier piece brought is counted here as well: those are pairs, too.
                found = (
                    _compare(left, right, rows[block], starts[block], counts[block], radius)
                    for block in _blocks(counts)
                )
                return _new(_joined(found, most), left, right, pieces[:number], second is None)

            yield look_up


def _partners(left: Table, right: Table, flip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of `left` that have partners, and the start and the length of their run in `right`.

    Within one table each pair of rows must be met once: a row looks only at those behind it in its
    own bucket, and of two buckets the one without the highest flipped bit looks at the other.
    """
    buckets = np.arange(len(left.starts) - 1)
    if left is right and flip:
        buckets = buckets[(buckets & (1 << flip.bit_length() >> 1)) == 0]
    partners = buckets ^ flip
    own, theirs = left.counts[buckets], right.counts[partners]
    used = np.flatnonzero((own > 0) & (theirs > 0))
    own, theirs, buckets, partners = own[used], theirs[used], buckets[used], partners[used]
    ends = np.cumsum(own)
    rows = np.repeat(left.starts[buckets] - (ends - own), own)
    rows += np.arange(len(rows))
    if left is right and not flip:
        last = np.repeat(left.starts[buckets + 1], own)
        return rows, rows + 1, last - rows - 1
    return rows, np.repeat(right.starts[partners], own), np.repeat(theirs, own)


def _blocks(counts: np.ndarray) -> list[slice]:
    """Runs of rows with about :data:`BLOCK` partners altogether."""
    if not len(counts):
        return []
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(BLOCK, int(ends[-1]), BLOCK), side="left") + 1
    places = np.unique(np.concatenate([[0], cuts, [len(counts)]]))
    return [slice(int(a), int(b)) for a, b in pairwise(places)]


def _compare(
    left: Table,
    right: Table,
    rows: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    radius: int,
) -> Found:
    """Compare rows of `left` with their runs in `right`; the answers are places in the tables."""
    ends = np.cumsum(counts)
    partners = np.repeat(starts - (ends - counts), counts)
    partners += np.arange(len(partners))
    distance = np.bitwise_count(np.repeat(left.hashes[rows], counts) ^ right.hashes.take(partners))
    hits = np.flatnonzero(distance <= radius)
    return rows[np.searchsorted(ends, hits, side="right")], partners[hits], distance[hits]


def _new(found: Found, left: Table, right: Table, earlier: Sequence[Piece], within: bool) -> Found:
    """The pairs in rows of the arrays searched, without those that an earlier piece brought."""
    ours, theirs, distance = found
    differing = left.hashes[ours] ^ right.hashes[theirs]
    fresh = np.ones(len(ours), dtype=bool)
    for piece in earlier:
        fresh &= np.bitwise_count(piece.of(differing)) > piece.radius
    a, b = left.order[ours[fresh]], right.order[theirs[fresh]]
    if within:
        a, b = np.minimum(a, b), np.maximum(a, b)
    return a, b, distance[fresh]
