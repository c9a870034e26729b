"""Small codes for embeddings: a byte or a bit a dimension, and a search over them.

A code is a matrix whose rows are decoded as they are read, so that
:func:`visual_search.search.top_k` searches it as it does a memory map: queries stay in float32,
the gallery takes a quarter or a thirty-second of its memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visual_search.errors import UserError
from visual_search.search import stable_top_k, top_k


class Codes(ABC):
    """Encoded rows; a slice or a list of rows comes back decoded, at length 1, float32."""

    bytes_per_row: float

    def __init__(self, stored: np.ndarray, dimension: int) -> None:
        self.stored = stored
        self.shape: tuple[int, int] = (len(stored), dimension)
        self.ndim = 2
        self.bytes_per_row = stored.nbytes / max(len(stored), 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        decoded = self._decode(self.stored[rows])
        lengths = np.linalg.norm(decoded, axis=1, keepdims=True)
        return np.divide(decoded, lengths, out=np.zeros_like(decoded), where=lengths > 0)

    @abstractmethod
    def _decode(self, stored: np.ndarray) -> np.ndarray:
        """Rows as they are stored, to `(n, dimension)`, float32, of any length."""


class Float16Codes(Codes):
    """Two bytes a dimension."""

    def __init__(self, vectors: Tensor, sample: Tensor) -> None:
        """Encode; arguments as :class:`Int8Codes`."""
        super().__init__(vectors.to(torch.float16).numpy(), vectors.shape[1])

    def _decode(self, stored: np.ndarray) -> np.ndarray:
        return stored.astype(np.float32)


class Int8Codes(Codes):
    """A byte a dimension: `round((x - mean) / step)`, held to -127..127.

    A step for each dimension, so that small ones keep their digits; it reaches over the largest
    of the sample.
    """

    def __init__(self, vectors: Tensor, sample: Tensor) -> None:
        """
        Args:
            vectors: `(n, dimension)`, to be encoded.
            sample: `(m, dimension)`, of the same kind, what the scale is fitted to.
        """
        self.mean, spread = _centre(sample)
        self.step = (spread / 127.0).clip(min=1e-12)
        levels = np.rint((vectors.numpy() - self.mean) / self.step).clip(-127, 127)
        super().__init__(levels.astype(np.int8), vectors.shape[1])

    def _decode(self, stored: np.ndarray) -> np.ndarray:
        return stored.astype(np.float32) * self.step + self.mean


class BinaryCodes(Codes):
    """A bit a dimension: on which side of the sample's mean it lies.

    It stands for the mean distance on that side: the query is not made binary, only the gallery
    (asymmetric distance; Gordo et al., "Asymmetric Distances for Binary Embeddings", PAMI 2014,
    section 3).
    """

    def __init__(self, vectors: Tensor, sample: Tensor) -> None:
        """Encode; arguments as :class:`Int8Codes`."""
        self.mean = sample.numpy().mean(axis=0)
        self.height = np.abs(sample.numpy() - self.mean).mean(axis=0)
        super().__init__(np.packbits(vectors.numpy() > self.mean, axis=1), vectors.shape[1])

    def _decode(self, stored: np.ndarray) -> np.ndarray:
        bits = np.unpackbits(stored, axis=1, count=self.shape[1])
        return (bits.astype(np.float32) * 2.0 - 1.0) * self.height + self.mean


def _centre(sample: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each dimension, and the largest distance from it."""
    values = sample.numpy()
    mean = values.mean(axis=0)
    return mean, np.abs(values - mean).max(axis=0)


def encode(kind: str, vectors: Tensor, sample: Tensor | None = None) -> Codes:
    """Codes of a gallery.

    Args:
        kind: a key of :data:`CODES`.
        vectors: `(n, dimension)`, float32, on the CPU.
        sample: `(m, dimension)`, what scales and means are fitted to; None is the vectors.

    Raises:
        UserError: for an unknown kind.
    """
    if kind not in CODES:
        raise UserError(f"there are no {kind!r} codes; known: {', '.join(CODES)}")
    return CODES[kind](vectors.float(), (vectors if sample is None else sample).float())


@dataclass(frozen=True)
class Rescored:
    """A search over short codes whose first hits are ordered anew by longer ones.

    The longer codes are read for these candidates alone, so they may lie on disk.
    """

    short: Codes
    long: Codes
    candidates: int
    """How many hits of each query are ordered anew; what is behind them stays where it is."""

    def __call__(self, queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As :func:`visual_search.search.top_k`; the gallery's own rows are not looked at.

        The similarities of the candidates are those of the longer codes, behind them those of
        the shorter.
        """
        scores, rows = top_k(queries, self.short, max(k, self.candidates))
        # Candidates in rising order, so that equal scores are ordered by index.
        candidates = rows[:, : self.candidates].sort(dim=1).values
        again = torch.empty(candidates.shape)
        for number, found in enumerate(candidates):
            again[number] = torch.from_numpy(self.long[found.numpy()]) @ queries[number].float()
        best, places = stable_top_k(again, self.candidates)
        scores = torch.cat([best, scores[:, self.candidates :]], dim=1)
        rows = torch.cat([candidates.gather(1, places), rows[:, self.candidates :]], dim=1)
        return scores[:, :k], rows[:, :k]


def search_codes(codes: Codes) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    """A search of the codes in place of the gallery they were made of."""
    return lambda queries, gallery, k: top_k(queries, codes, k)


CODES: dict[str, Callable[[Tensor, Tensor], Codes]] = {
    "float16": Float16Codes,
    "int8": Int8Codes,
    "binary": BinaryCodes,
}
"""Codes by name; each takes the vectors and the sample that scales are fitted to."""
