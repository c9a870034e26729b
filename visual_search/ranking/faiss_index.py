"""Approximate search by faiss: an index on disk for very large galleries, and small codes.

An inverted file of product-quantised vectors (Jégou et al., Product Quantization for Nearest
Neighbor Search, TPAMI 2011) lies on disk and is mapped into memory: of a billion images a query
reads the few lists nearest to it. The candidates are then scored by the embeddings themselves, read
from their memory map, so that only which images are candidates is approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.common.files import written_atomically
from visual_search.ranking.search import Matrix, order_ties, stable_top_k

CODES = {"float16": "SQfp16", "int8": "SQ8", "binary": "RaBitQ"}
"""Two bytes, a byte or a bit a dimension (and 8 bytes a row of the last: Gao and Long, RaBitQ,
SIGMOD 2024), as faiss's index factory calls them. The queries stay in float32."""

# Vectors added to the index at once.
BLOCK_ROWS = 65_536
# faiss wants at least 39 training vectors for each centroid, and takes no more than 256.
TRAINING_PER_LIST = 64
# Centroids of each part of the product quantiser: a byte names one.
CENTROIDS = 256
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
    """Of a stored vector, at most; the largest divisor of the dimension up to it is taken."""
    candidates: int = 4
    """Candidates that are scored exactly, in multiples of the neighbours asked for."""


DEFAULT = FaissSettings()


class FaissIndex:
    """An index on disk of a gallery that stays where it is."""

    def __init__(self, path: Path, gallery: Matrix, settings: FaissSettings) -> None:
        """Open the index at `path`, or build it there.

        Args:
            path: of the index file; it must be of this gallery.
            gallery: `(n_gallery, dimension)`, best a memory map.
            settings: of an index that is built, and of every search.

        Raises:
            ValueError: when the index has another number of rows or columns than the gallery.
        """
        import faiss

        self.gallery, self.settings = gallery, settings
        if not path.is_file():
            with written_atomically(path) as temporary:
                faiss.write_index(_build(gallery, settings), str(temporary))
        self.index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        if (self.index.ntotal, self.index.d) != tuple(gallery.shape):
            raise ValueError(
                f"{path} is an index of {self.index.ntotal} x {self.index.d}, the gallery has "
                f"{tuple(gallery.shape)}; remove it, and it is built anew"
            )
        self.index.nprobe = settings.probes  # type: ignore[attr-defined]

    def top_k(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As :func:`visual_search.ranking.search.top_k`, but a neighbour may be missing.

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


def faiss_search(
    queries: Tensor, gallery: Tensor, k: int, settings: FaissSettings = DEFAULT
) -> tuple[Tensor, Tensor]:
    """:meth:`FaissIndex.top_k` with an index that is built for the one search.

    Raises:
        UserError: for a gallery too small to train the quantiser on.
    """
    if len(gallery) < CENTROIDS:
        raise UserError(
            f"the faiss index needs {CENTROIDS} gallery images or more, not {len(gallery)}: "
            "take the exact search"
        )
    with TemporaryDirectory() as folder:
        return FaissIndex(Path(folder) / "index.faiss", gallery, settings).top_k(queries, k)


class CodedGallery:
    """A gallery stored in short codes, searched whole; the best few may be ordered anew."""

    def __init__(
        self,
        kind: str,
        gallery: Tensor,
        sample: Tensor,
        rescored_by: str = "",
        candidates: int = 50,
    ) -> None:
        """
        Args:
            kind: a key of :data:`CODES`.
            gallery: `(n, dimension)`, float32, on the CPU.
            sample: `(m, dimension)`, what scales and means are fitted to.
            rescored_by: a key of :data:`CODES`: longer codes that order the first hits anew. They
                are read for these alone, so they may lie on disk.
            candidates: how many hits of each query are ordered anew.
        """
        import faiss

        self.index = _coded(kind, gallery, sample)
        self.bytes_searched = self.bytes_stored = float(self.index.sa_code_size())
        """Of a gallery image: in memory while it is searched, and stored in all."""
        self.refined: Any = None
        self.candidates = candidates
        if rescored_by:
            longer = _coded(rescored_by, gallery, sample)
            self.refined = faiss.IndexRefine(self.index, longer)
            self.bytes_stored += longer.sa_code_size()

    def top_k(self, queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As :func:`visual_search.ranking.search.top_k`; the gallery's own rows are not looked at.

        The similarities of the candidates are those of the longer codes, behind them those of
        the shorter.
        """
        asked, k = _block(queries.cpu()), min(k, len(gallery))
        found = _by_index(self.index.search(asked, k))
        if self.refined is None:
            return found
        first = min(self.candidates, k)
        best = _by_index(self.refined.search(asked, first))
        scores, rows = (torch.cat([a, b[:, first:]], 1) for a, b in zip(best, found, strict=True))
        return scores, rows


def _coded(kind: str, gallery: Tensor, sample: Tensor) -> Any:
    import faiss

    index = faiss.index_factory(gallery.shape[1], CODES[kind], faiss.METRIC_INNER_PRODUCT)
    index.train(_block(sample))
    index.add(_block(gallery))
    return index


def _by_index(found: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
    """faiss's similarities and rows, equal similarities in the order of their rows."""
    scores, rows = (torch.from_numpy(side) for side in found)
    order_ties(scores, rows)
    return scores, rows


def _build(gallery: Matrix, settings: FaissSettings) -> Any:
    import faiss

    n, dimension = gallery.shape
    lists = settings.lists or max(min(round(4 * n**0.5), n // TRAINING_PER_LIST), 1)
    code_bytes = max(n for n in range(1, settings.code_bytes + 1) if dimension % n == 0)
    # np: no polysemous training, which is slow and serves a filter that is not used here.
    kind = f"IVF{lists},PQ{code_bytes}np"
    index = faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT)
    stride = max(n // max(lists * TRAINING_PER_LIST, CENTROIDS * TRAINING_PER_LIST), 1)
    index.train(_block(gallery[::stride]))
    for start in range(0, n, BLOCK_ROWS):
        index.add(_block(gallery[start : start + BLOCK_ROWS]))
    return index


def _block(rows: Matrix) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(rows), dtype=np.float32)
