"""The rank of every right photo of every query, without a ranking: by counting what outranks it.

A metric needs to know where the right photos stand, and a class has few photos. So no list of
neighbours is made: the similarities of a tile are compared with those of the right photos, and
what beats one of them is counted. Nothing but counts outlives a tile.

Three things make it fast. Similarities of photos with each other are symmetric: leave-one-out
needs half of them. Tiles are multiplied in bfloat16 where the processor is faster with it; the
error is bounded for each query (Cauchy-Schwarz over what rounding took from the vectors), and what
the bound cannot decide is measured again in float32: the ranks are those of float32. And a right
photo beyond the depth that metrics look at is not counted to its end: a similarity that `depth`
photos exceed is guessed from a sample, and the guess is checked by the count.
"""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from visual_search.coarse_products import Sides
from visual_search.hits import Hits, right_photos, shared_codes
from visual_search.metrics import MAX_PREDICTIONS
from visual_search.search import on_threads

TILE = 1024
"""Rows of a tile of similarities: 2 MB in bfloat16."""
# Similarities to right photos held at once; 2^23 are some 250 MB with all that belongs to them.
WANTED_AT_ONCE = 1 << 23
# The guess is the 40th best of a sample that should hold so many of the best `depth`, and three
# deviations more: of a thousand guesses one or two are too high, and are made good.
SAMPLED_BEST, SAMPLED_RANK = 40, 40 + 3 * 6

_NEVER = np.float32(np.inf)


def count_hits(
    gallery: Tensor,
    gallery_labels: np.ndarray,
    queries: Tensor,
    query_labels: np.ndarray,
    own: np.ndarray | None = None,
    depth: int = MAX_PREDICTIONS,
) -> Hits:
    """The hits of an exact search by inner product; equal similarities rank by gallery row.

    Args:
        gallery: `(n_gallery, dimension)`, float32, on the CPU.
        gallery_labels: `(n_gallery,)`.
        queries: `(n_queries, dimension)`, float32; with `own`, what `gallery[own]` is.
        query_labels: `(n_queries,)`.
        own: `(n_queries,)`, where the queries are photos of the gallery (leave-one-out), the row
            of each, all different: it is never ranked for itself.
        depth: ranks that matter; raised to the number of right photos where a query has more.

    Raises:
        ValueError: when shapes do not fit together, or a number is infinite or none.
    """
    if queries.shape[1:] != gallery.shape[1:] or len(gallery) != len(gallery_labels):
        raise ValueError(f"{tuple(queries.shape)} and {tuple(gallery.shape)} do not fit together")
    if not (torch.isfinite(gallery).all() and torch.isfinite(queries).all()):
        raise ValueError("an embedding has a number that is infinite or not a number")
    gallery_codes, query_codes = shared_codes(gallery_labels, query_labels)
    wanted = right_photos(gallery_codes, query_codes, own)
    depth = max(depth, int(wanted.max(initial=0)))
    sides = Sides(gallery, queries, gallery_codes, query_codes, own)
    # Queries whose right photos are held at once.
    parts = np.split(
        np.arange(len(wanted)),
        1 + np.flatnonzero(np.diff(np.cumsum(wanted) // WANTED_AT_ONCE)),
    )
    found = [_hits_of(sides, part, depth, guess=True) for part in parts if len(part)]
    query = np.concatenate([np.zeros(0, np.int64), *(query for query, _ in found)])
    rank = np.concatenate([np.zeros(0, np.int64), *(rank for _, rank in found)])
    order = np.lexsort((rank, query))
    return Hits(query[order], rank[order], wanted, depth)


class _Wanted:
    """The right photos of some queries, best first, as far as they are looked for."""

    def __init__(self, sides: Sides, part: np.ndarray, cuts: np.ndarray | None) -> None:
        """
        Args:
            sides: both sides.
            part: the queries.
            cuts: `(len(part),)`, similarity below which right photos are not looked for.
        """
        self.sides, self.part = sides, part
        place, rows = sides.right_rows(part)
        scores = sides.similarities(part[place], rows)
        if cuts is not None:
            cut_off = np.zeros(len(part), bool)
            cut_off[place[scores <= cuts[place]]] = True
            kept = scores > cuts[place]
            place, rows, scores = place[kept], rows[kept], scores[kept]
        else:
            cuts, cut_off = np.full(len(part), -np.inf, np.float32), np.zeros(len(part), bool)
        order = np.lexsort((rows, -scores, place))
        self.place, self.rows, self.scores = place[order], rows[order], scores[order]
        self.sizes = np.bincount(place, minlength=len(part))
        self.starts = np.append(0, np.cumsum(self.sizes))
        self.cut_off = cut_off
        """Whether a query has right photos that are not looked for."""
        self.cuts = cuts
        lowest = np.full(len(part), _NEVER, np.float32)
        some = self.sizes > 0
        lowest[some] = self.scores[self.starts[1:][some] - 1]
        lowest[cut_off] = cuts[cut_off]
        self.thresholds = _comparable(lowest - sides.error[part], sides.coarse)
        # What beats the j-th right photo, and not the one before it: j-th slot of its query.
        self.beaten = np.zeros(len(self.rows) + len(part), np.int64)
        self.above_cut = np.zeros(len(part), np.int64)
        self.lock = threading.Lock()

    def add(
        self, first: int, last: int, place: np.ndarray, row: np.ndarray, value: np.ndarray
    ) -> None:
        """Count gallery photos of other classes with their coarse similarities.

        Args:
            first: of the places; all lie in first..last - 1.
            last: see there.
            place: `(n,)`, of the query in `part`.
            row: `(n,)`, of the gallery.
            value: `(n,)`, float32.
        """
        sides = self.sides
        others = sides.gallery_codes[row] != sides.query_codes[self.part[place]]
        place, row, value = place[others], row[others], value[others]
        error = sides.error[self.part[place]] + sides.rounding(value)
        before = self._beating(place, value + error)
        # The next right photo; behind the last one of a query there is none.
        following = np.append(self.scores, 0)[self.starts[place] + before]
        unsure = np.flatnonzero((before < self.sizes[place]) & (following >= value - error))
        if len(unsure):
            exact = sides.similarities(self.part[place[unsure]], row[unsure])
            before[unsure] = self._beating(place[unsure], exact, row[unsure])
        counts = np.bincount(
            self.starts[place] + place + before - self.starts[first] - first,
            minlength=self.starts[last] - self.starts[first] + last - first,
        )
        above = np.bincount(place[value - error > self.cuts[place]] - first, minlength=last - first)
        with self.lock:
            self.beaten[self.starts[first] + first : self.starts[last] + last] += counts
            self.above_cut[first:last] += above

    def _beating(
        self, place: np.ndarray, value: np.ndarray, row: np.ndarray | None = None
    ) -> np.ndarray:
        """How many right photos of the query beat a value: are larger, or equal with an earlier
        row; without rows, are larger."""
        low, high = np.zeros(len(place), np.int64), self.sizes[place].copy()
        start = self.starts[place]
        for _ in range(int(self.sizes.max(initial=0)).bit_length()):
            open_ = low < high
            middle = (low + high) >> 1
            at = np.minimum(start + middle, len(self.scores) - 1)
            beats = self.scores[at] > value
            if row is not None:
                beats |= (self.scores[at] == value) & (self.rows[at] < row)
            low = np.where(open_ & beats, middle + 1, low)
            high = np.where(open_ & ~beats, middle, high)
        return low

    def ranks(self) -> np.ndarray:
        """`(right photos,)`, from 1."""
        slots = np.cumsum(self.beaten)
        own_slot = np.arange(len(self.rows)) + self.place
        first_slot = self.starts[:-1] + np.arange(len(self.part))
        before = np.append(0, slots)[first_slot]
        within = np.arange(len(self.rows)) - self.starts[self.place]
        return slots[own_slot] - before[self.place] + within + 1


def _comparable(values: np.ndarray, kind: torch.dtype) -> Tensor:
    """Thresholds as a tile's numbers are compared with them; rounding keeps the order."""
    rounded = torch.from_numpy(values.astype(np.float32)).to(kind)
    if kind != torch.bfloat16:
        return rounded
    # bfloat16 from zero on orders like integers; below, everything passes and is looked at.
    bits = rounded.view(torch.int16)
    return torch.where(rounded > 0, bits, torch.iinfo(torch.int16).min)


def _hits_of(
    sides: Sides, part: np.ndarray, depth: int, guess: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Query and rank of the hits of some queries, in any order."""
    cuts = _guessed_cuts(sides, part, depth) if guess else None
    wanted = _Wanted(sides, part, cuts)
    if sides.symmetric and len(part) == len(sides.queries):
        _count_symmetric(sides, wanted)
    else:
        _count_all(sides, wanted)
    ranks = wanted.ranks()
    too_high = wanted.cut_off & (wanted.above_cut + wanted.sizes < depth)
    good = (ranks <= depth) & ~too_high[wanted.place]
    query, rank = part[wanted.place[good]], ranks[good]
    if too_high.any():
        more = _hits_of(sides, part[too_high], depth, guess=False)
        query, rank = np.concatenate([query, more[0]]), np.concatenate([rank, more[1]])
    return query, rank


def _guessed_cuts(sides: Sides, part: np.ndarray, depth: int) -> np.ndarray | None:
    """A similarity that more than `depth` gallery rows most likely exceed, for each query."""
    stride = depth // SAMPLED_BEST
    if stride < 2 or len(sides.gallery) < 4 * depth:
        return None
    sample = sides.coarse_gallery[::stride].contiguous()
    rows = torch.from_numpy(part)

    def of(places: Tensor) -> Tensor:
        products = (sides.coarse_queries[places] @ sample.T).float()
        return _kth_largest(products, SAMPLED_RANK)

    return torch.cat(on_threads(of, rows.split(TILE), torch.get_num_threads())).numpy()


def _kth_largest(values: Tensor, k: int) -> Tensor:
    cut = values.shape[1] - k
    return torch.from_numpy(np.partition(values.numpy(), cut, axis=1)[:, cut].copy())


def _count_all(sides: Sides, wanted: _Wanted) -> None:
    """Compare every query of `wanted` with every gallery row."""
    bounds = list(pairwise([*range(0, len(wanted.part), TILE), len(wanted.part)]))
    columns = [*range(0, len(sides.gallery), TILE), len(sides.gallery)]
    tiles = [(*rows, *cols) for rows in bounds for cols in pairwise(columns)]
    rows_of_part = torch.from_numpy(wanted.part)

    def count(tile: tuple[int, int, int, int]) -> None:
        first, last, left, right = tile
        queries = sides.coarse_queries[rows_of_part[first:last]]
        products = queries @ sides.coarse_gallery[left:right].T
        row, column, value = _passing(products, wanted.thresholds[first:last, None])
        wanted.add(first, last, row + first, column + left, value)

    on_threads(count, tiles, torch.get_num_threads())


def _count_symmetric(sides: Sides, wanted: _Wanted) -> None:
    """The same where the queries are most of the gallery: each product counts for both photos."""
    assert sides.own is not None
    place_of_row = np.full(len(sides.gallery), -1)
    place_of_row[sides.own] = np.arange(len(sides.own))
    never = _comparable(np.full(1, np.inf, np.float32), sides.coarse)
    thresholds = never.repeat(len(sides.gallery))
    thresholds[torch.from_numpy(sides.own)] = wanted.thresholds
    bounds = list(pairwise([*range(0, len(sides.gallery), TILE), len(sides.gallery)]))
    tiles = [(*one, *other) for i, one in enumerate(bounds) for other in bounds[i:]]

    def add(rows: np.ndarray, others: np.ndarray, value: np.ndarray) -> None:
        place = place_of_row[rows]
        if len(place):
            wanted.add(int(place.min()), int(place.max()) + 1, place, others, value)

    def count(tile: tuple[int, int, int, int]) -> None:
        top, bottom, left, right = tile
        products = sides.coarse_gallery[top:bottom] @ sides.coarse_gallery[left:right].T
        row, column, value = _passing(products, thresholds[top:bottom, None])
        add(row + top, column + left, value)
        if left != top:
            row, column, value = _passing(products, thresholds[None, left:right])
            add(column + left, row + top, value)

    on_threads(count, tiles, torch.get_num_threads())


def _passing(products: Tensor, thresholds: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value (float32) of the products at or above their thresholds."""
    numbers = products.view(torch.int16) if products.dtype == torch.bfloat16 else products
    places = _flat_true(numbers.numpy() >= thresholds.numpy())
    value = products.view(-1)[torch.from_numpy(places)].float().numpy()
    row = places // products.shape[1]
    return row, places - row * products.shape[1], value


def _flat_true(mask: np.ndarray) -> np.ndarray:
    """`np.flatnonzero(mask)`, eight at a time: most of them are all false."""
    flat = mask.reshape(-1)
    if len(flat) % 8:
        return np.flatnonzero(flat)
    words = np.flatnonzero(flat.view(np.uint64))
    inner = np.flatnonzero(flat.reshape(-1, 8)[words])
    return words[inner >> 3] * 8 + (inner & 7)
