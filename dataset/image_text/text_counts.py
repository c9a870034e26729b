"""How often each of any number of texts was seen, in memory that does not grow."""

from __future__ import annotations

import numpy as np

# Odd constants for multiplicative hashing (Knuth 1998, section 6.4): the golden ratio and
# the square root of two, as 64-bit fractions.
_FACTORS = np.array([0x9E3779B97F4A7C15, 0x6A09E667F3BCC909], dtype=np.uint64)


class TextCounts:
    """A count-min sketch (Cormode and Muthukrishnan 2005) of two rows.

    A count is never too small, and too large only where the text shares its cells with others: with
    N texts seen, by more than 2·e·N / 2**bits for less than one text in seven.
    """

    def __init__(self, bits: int = 22) -> None:
        """
        Args:
            bits: 2 to this power cells a row, of 4 bytes: 32 MB in all by default.
        """
        self._shift = np.uint64(64 - bits)
        self._cells = np.zeros((len(_FACTORS), 1 << bits), dtype=np.uint32)

    def add(self, keys: np.ndarray) -> None:
        """Count texts, by their keys, uint64; one that comes twice counts twice."""
        for row, places in zip(self._cells, self._places(keys), strict=True):
            np.add.at(row, places, 1)

    def of(self, keys: np.ndarray) -> np.ndarray:
        """How often each text was seen, or a little more, `(n,)`, uint32."""
        places = self._places(keys)
        return np.minimum(self._cells[0, places[0]], self._cells[1, places[1]])

    def _places(self, keys: np.ndarray) -> list[np.ndarray]:
        return [(keys * factor >> self._shift).astype(np.int64) for factor in _FACTORS]
