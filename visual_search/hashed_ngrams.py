"""Words and character n-grams of a text as numbers below a bound, without a vocabulary.

As fastText does (Bojanowski et al. 2017): a word is known by itself and by its n-grams, so that
other forms of it, and misspelt ones, are near. Two features may share a number; with some ten
times more numbers than features that is rare.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORTEST, LONGEST = 3, 5
"""Characters of an n-gram, the marks at both ends of a word included."""
_WORD = re.compile(r"\w+")


def features_of(text: str) -> list[str]:
    """The words of a text, and the n-grams of each between its marks `<` and `>`."""
    features: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("ё", "е")):
        features.append(f"={word}")
        marked = f"<{word}>"
        for length in range(SHORTEST, LONGEST + 1):
            features += [marked[i : i + length] for i in range(len(marked) - length + 1)]
    return features


@lru_cache(maxsize=100_000)
def hashed(text: str, buckets: int) -> tuple[int, ...]:
    """Each feature's number, 1..buckets; the same in every process and year (CRC-32)."""
    return tuple(1 + zlib.crc32(feature.encode()) % buckets for feature in features_of(text))


class HashedNgrams(nn.Module):
    """The mean of the features' trained vectors, weighted by how rare each is (tf-idf).

    Features that no training text has count as nothing, here as in the idf.
    """

    idf: Tensor

    def __init__(self, buckets: int = 20000, dimension: int = 256) -> None:
        """
        Args:
            buckets: rows of the table.
            dimension: of a vector.
        """
        super().__init__()
        self.buckets, self.dimension = buckets, dimension
        self.table = nn.Embedding(buckets + 1, dimension, padding_idx=0)
        # Beside another tower it starts as if it were not there.
        nn.init.zeros_(self.table.weight)
        self.register_buffer("idf", torch.zeros(buckets + 1))

    def start_alone(self) -> None:
        """Random vectors, for a tower without another beside it: from nothing nothing is learnt."""
        nn.init.normal_(self.table.weight)
        with torch.no_grad():
            self.table.weight[0].zero_()

    def fit(self, texts: Sequence[str]) -> None:
        """Weigh the features by the training texts: ln((1 + n) / (1 + df)) + 1."""
        counts = np.zeros(self.buckets + 1)
        distinct = set(texts)
        for text in distinct:
            counts[list(set(hashed(text, self.buckets)))] += 1
        idf = np.where(counts > 0, np.log((1 + len(distinct)) / (1 + counts)) + 1, 0.0)
        self.idf.copy_(torch.from_numpy(idf))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """`(n, longest)`, int64, filled up with 0."""
        rows = [hashed(text, self.buckets) for text in texts]
        tokens = torch.zeros(len(rows), max(map(len, rows), default=0) or 1, dtype=torch.int64)
        for row, numbers in zip(tokens, rows, strict=True):
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """`(n, dimension)`; zeros for a text of unknown features alone."""
        weights = self.idf[tokens]
        weights = weights / weights.norm(dim=1, keepdim=True).clamp(min=1e-12)
        # Without a tensor of all features' vectors: a description has a thousand.
        return F.embedding_bag(
            tokens, self.table.weight, mode="sum", per_sample_weights=weights.to(self.table.weight)
        )

    def bags(self, texts: Sequence[str]) -> np.ndarray:
        """The tf-idf vectors that the table is multiplied by, `(n, buckets + 1)`, float32."""
        rows = np.zeros((len(texts), self.buckets + 1), dtype=np.float32)
        idf = self.idf.cpu().numpy()
        for row, text in zip(rows, texts, strict=True):
            np.add.at(row, list(hashed(text, self.buckets)), 1.0)
            row *= idf
            row /= max(float(np.linalg.norm(row)), 1e-12)
        return rows
