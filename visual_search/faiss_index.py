"""Approximate search by faiss, for galleries past one machine's memory; scores are exact again.

An inverted file of product-quantised vectors (Jégou et al., Product Quantization for Nearest
Neighbor Search, TPAMI 2011) lies on disk and is mapped into memory: of a billion photos a query
reads the few lists nearest to it. The candidates are then scored by the embeddings themselves, read
from their memory map, so that only which photos are candidates is approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visual_search.files import written_atomically
from visual_search.search import Matrix, stable_top_k

# Vectors added to the index at once.
BLOCK_ROWS = 65_536
# faiss wants at least 39 training vectors for each centroid; more than 256 gain little.
TRAINING_PER_LIST = 64
# Embeddings read for exact scores at once: 2^26 numbers are 256 MB.
RESCORED_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class FaissSettings:
    """How much of the gallery a query looks at, and how coarsely it is stored."""

    lists: int = 0
    """Cells of the gallery; 0 takes 4 times the root of its size."""
    probes: int = 32
    """Cells that a query looks into: more find more and take longer."""
    code_bytes: int = 64
    """Of a stored vector; it divides the dimension."""
    candidates: int = 4
    """Candidates that are scored exactly, in multiples of the neighbours asked for."""


class FaissIndex:
    """An index on disk of a gallery that stays where it is."""

    def __init__(self, path: Path, gallery: Matrix, settings: FaissSettings) -> None:
        """Open the index at `path`, or build it there.

        Args:
            path: of the index file; it must be of this gallery.
            gallery: `(n_gallery, dimension)`, best a memory map.
            settings: of an index that is built, and of every search.

        Raises:
            ValueError: when the index has another number of rows or columns than the gallery, or
                `code_bytes` does not divide the dimension.
        """
        import faiss

        self.gallery, self.settings = gallery, settings
        if not path.is_file():
            with written_atomically(path) as temporary:
                faiss.write_index(_build(gallery, settings), str(temporary))
        self.index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        if (self.index.ntotal, self.index.d) != tuple(gallery.shape):
            raise ValueError(
                f"{path} is an index of {self.index.ntotal} x {self.index.d}, the gallery has "
                f"{tuple(gallery.shape)}; remove it, and it is built anew"
            )
        self.index.nprobe = settings.probes  # type: ignore[attr-defined]

    def top_k(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As :func:`visual_search.search.top_k`, but a neighbour may be missing.

        Returns:
            Similarities, float32, and row indexes, int64, `(n_queries, min(k, n_gallery))`. Where
            the probed cells hold fewer than k, minus infinity and -1 stand at the end.
        """
        k = min(k, len(self.gallery))
        wanted = min(k * self.settings.candidates, len(self.gallery))
        dimension = queries.shape[1]
        step = max(RESCORED_ELEMENTS // max(wanted * dimension, 1), 1)
        found = [
            self._block(queries[i : i + step], k, wanted) for i in range(0, len(queries), step)
        ]
        scores, indexes = (torch.cat(side) for side in zip(*found, strict=True))
        return scores, indexes

    def _block(self, queries: Tensor, k: int, wanted: int) -> tuple[Tensor, Tensor]:
        _, labels = self.index.search(queries.float().cpu().numpy(), wanted)
        # In order of index, so that ties go to the smaller one.
        candidates = torch.from_numpy(labels).sort(dim=1).values
        rows, places = candidates.clamp(min=0).unique(return_inverse=True)
        vectors = torch.as_tensor(np.asarray(self.gallery[rows.numpy()])).float()
        scores = torch.einsum("qd,qcd->qc", queries.float().cpu(), vectors[places])
        scores = torch.where(candidates < 0, -torch.inf, scores)
        best, order = stable_top_k(scores, k)
        return best, candidates.gather(1, order)


def _build(gallery: Matrix, settings: FaissSettings) -> Any:
    import faiss

    n, dimension = gallery.shape
    lists = settings.lists or max(min(round(4 * n**0.5), n // TRAINING_PER_LIST), 1)
    if dimension % settings.code_bytes:
        raise ValueError(f"code_bytes is {settings.code_bytes}; it must divide {dimension}")
    kind = f"IVF{lists},PQ{settings.code_bytes}"
    index = faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT)
    stride = max(n // max(lists * TRAINING_PER_LIST, 256 * TRAINING_PER_LIST), 1)
    index.train(_block(gallery[::stride]))
    for start in range(0, n, BLOCK_ROWS):
        index.add(_block(gallery[start : start + BLOCK_ROWS]))
    return index


def _block(rows: Matrix) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(rows), dtype=np.float32)
