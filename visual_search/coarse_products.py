"""Products of embeddings in bfloat16 with a bound for their error, and in float32 for pairs."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import torch
from torch import Tensor

# Pairs of vectors measured at once: 2^7 of 512 numbers are 256 KB for each side, which stay in the
# cache of their core; 2^13 take three times as long.
PAIRS_AT_ONCE = 1 << 7
ROWS_AT_ONCE = 4096

_EXPONENT = np.uint32(0x7F80_0000)  # of a float32, and of a bfloat16


class Sides:
    """Both sides as they are multiplied, and how wrong a coarse product can be."""

    def __init__(
        self,
        gallery: Tensor,
        queries: Tensor,
        gallery_codes: np.ndarray,
        query_codes: np.ndarray,
        own: np.ndarray | None,
    ) -> None:
        self.gallery, self.queries, self.own = gallery.float(), queries.float(), own
        self.gallery_codes, self.query_codes = gallery_codes, query_codes
        self.symmetric = (
            own is not None
            and len(own) > len(gallery) / 2
            and torch.equal(self.queries, self.gallery[torch.from_numpy(own)])
        )
        """Whether the queries are photos of the gallery, as they are there, and most of them."""
        dimension = gallery.shape[1]
        self.coarse = coarse_type(dimension)
        self.coarse_gallery = self.gallery.to(self.coarse)
        self.coarse_queries = self.queries.to(self.coarse)
        lengths, losses = _lengths(self.gallery, self.coarse_gallery)
        longest, largest_loss = lengths.max(initial=0), losses.max(initial=0)
        of_query, loss = _lengths(self.queries, self.coarse_queries)
        summing = 4 * dimension * 2.0**-24  # both sums, in whatever order
        bound = loss * longest + (of_query + loss) * (largest_loss + summing * longest)
        self.error = (1.01 * bound + 1e-30).astype(np.float32)
        """`(n_queries,)`: a coarse product is at most so far from the float32 one, before it is
        rounded itself."""
        rows = np.argsort(gallery_codes, kind="stable")
        self.rows_by_class = rows
        classes = max(gallery_codes.max(initial=-1), query_codes.max(initial=-1)) + 1
        photos = np.bincount(gallery_codes, minlength=classes)
        self.class_starts = np.append(0, np.cumsum(photos))

    def right_rows(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in `part` and gallery rows of the right photos of its queries."""
        codes = self.query_codes[part]
        starts, ends = self.class_starts[codes], self.class_starts[codes + 1]
        counts = ends - starts
        place = np.repeat(np.arange(len(part)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self.rows_by_class[np.repeat(starts, counts) + within]
        if self.own is not None:
            others = rows != self.own[part][place]
            place, rows = place[others], rows[others]
        return place, rows

    def rounding(self, products: np.ndarray) -> np.ndarray:
        """How far coarse products can be from what was rounded to them, float32, as many.

        bfloat16 keeps 8 bits: at most half of the last one, 2^-8 of the power of two below.

        Args:
            products: float32, contiguous, as they come from a tile.
        """
        if self.coarse != torch.bfloat16:
            return np.zeros(products.shape, np.float32)
        powers = (products.view(np.uint32) & _EXPONENT).view(np.float32)
        return powers * np.float32(2.0**-8)

    def similarities(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float32 products of pairs; equal pairs of vectors give equal bits."""
        found = np.empty(len(rows), np.float32)
        matrices = self.queries.numpy(), self.gallery.numpy()
        room = np.empty((2, PAIRS_AT_ONCE, self.gallery.shape[1]), np.float32)
        for start in range(0, len(rows), PAIRS_AT_ONCE):
            here = slice(start, start + PAIRS_AT_ONCE)
            one, other = (
                np.take(matrix, picked[here], axis=0, out=out[: len(picked[here])], mode="clip")
                for matrix, picked, out in zip(matrices, (queries, rows), room, strict=True)
            )
            found[here] = np.einsum("ij,ij->i", one, other)
        return found


def _lengths(exact: Tensor, coarse: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the rows, and of what rounding took from them."""
    loss = [
        (one - other.float()).norm(dim=1)
        for one, other in zip(exact.split(ROWS_AT_ONCE), coarse.split(ROWS_AT_ONCE), strict=True)
    ]
    return exact.norm(dim=1).numpy(), torch.cat(loss).numpy()


@cache
def coarse_type(dimension: int) -> torch.dtype:
    """bfloat16 where this CPU multiplies it half as fast again as float32, or faster."""
    one = torch.randn(512, max(dimension, 1))
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        sample, taken = one.to(kind), []
        for _ in range(4):
            started = time.perf_counter()
            sample @ sample.T
            taken.append(time.perf_counter() - started)
        seconds[kind] = min(taken)
    faster = 1.5 * seconds[torch.bfloat16] < seconds[torch.float32]
    return torch.bfloat16 if faster else torch.float32
