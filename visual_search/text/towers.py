"""Text towers: texts to token numbers, token numbers to features.

Those that others have trained are in :mod:`visual_search.text.pretrained_towers`; by the names of
`text.towers` all are made in :mod:`visual_search.text.encoder`.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visual_search.data.values import in_small_letters
from visual_search.text.sentence_encoders import sentence_encoder

MOST_REMEMBERED = 100_000
"""Texts whose frozen embeddings are kept in memory; 512 numbers each are 200 MB."""
SHORTEST, LONGEST = 3, 5
"""Characters of an n-gram, the marks at both ends of a word included."""


class Standardised(nn.Module):
    """Features less their mean, with a standard deviation of 1 over all; noise in training."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dimension: int, noise: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(()))
        self.noise, self.dropout = noise, nn.Dropout(dropout)

    def measure(self, features: Tensor) -> None:
        """Take mean and scale from `(n, dimension)`."""
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_((features - self.mean).std().clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """`(n, dimension)`."""
        features = (features - self.mean) / self.scale
        if self.training and self.noise:
            features = features + self.noise * torch.randn_like(features)
        return self.dropout(features)


class TextTower(nn.Module, ABC):
    """One tower; what it does not need it leaves as it is here."""

    dimension: int
    """Width of the features."""
    vocabulary = 0
    """How many token numbers there are, from 0; 0 where the tokens are of another kind."""
    padding = 0
    """The number that fills up a shorter text."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """What :meth:`forward` takes, a row for each text."""

    def fit(self, texts: Sequence[str]) -> None:
        """Look at the training texts once."""

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the last `blocks` blocks (-1 all, 0 none), and the embeddings or not."""

    def save_files(self, folder: Path) -> None:
        """Write what it needs beside its weights, such as a tokenizer."""


class FrozenText(Standardised, TextTower):
    """A sentence encoder that is not trained; its vectors are the tokens."""

    def __init__(self, name: str, noise: float = 0.0, dropout: float = 0.0) -> None:
        """`name` is as :func:`visual_search.text.sentence_encoders.sentence_encoder` takes it."""
        encoder = sentence_encoder(name)
        super().__init__(encoder.dimension, noise, dropout)
        self.encoder, self.dimension = encoder, encoder.dimension
        self._known: dict[str, Tensor] = {}

    def fit(self, texts: Sequence[str]) -> None:
        """Centre the features, and bring their standard deviation over all texts to 1."""
        self.measure(self.tokenize(sorted(set(texts))))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, dimension)`, float32; those of known texts come from memory."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        made = dict(zip(new, torch.from_numpy(self.encoder.encode(new)), strict=True))
        vectors = torch.stack([made[t] if t in made else self._known[t] for t in texts])
        if len(self._known) + len(made) > MOST_REMEMBERED:
            self._known.clear()
        self._known |= made
        return vectors


def features_of(text: str) -> list[str]:
    """The words of a text, and the n-grams of each between its marks `<` and `>`."""
    features: list[str] = []
    plain = unicodedata.normalize("NFKC", text).lower().replace("ё", "е")
    for word in re.findall(r"\w+", plain):
        features.append(f"={word}")
        marked = f"<{word}>"
        for length in range(SHORTEST, LONGEST + 1):
            features += [marked[i : i + length] for i in range(len(marked) - length + 1)]
    return features


@lru_cache(maxsize=100_000)
def hashed(text: str, buckets: int) -> tuple[int, ...]:
    """Each feature's number, 1..buckets; the same in every process and year (CRC-32)."""
    return tuple(1 + zlib.crc32(feature.encode()) % buckets for feature in features_of(text))


class HashedNgrams(TextTower):
    """The mean of the features' trained vectors, weighted by how rare each is (tf-idf).

    As fastText (Bojanowski et al. 2017): a word is known by itself and by its n-grams, so that
    other forms of it, and misspelt ones, are near. Features that no training text has count as
    nothing. scikit-learn's HashingVectorizer has other numbers than the tables trained already.
    """

    idf: Tensor

    def __init__(self, buckets: int, dimension: int, alone: bool = True) -> None:
        """`alone`: no other tower is beside it; else it starts as if it were not there."""
        super().__init__()
        self.buckets, self.dimension = buckets, dimension
        self.table = nn.Embedding(buckets + 1, dimension, padding_idx=0)
        if not alone:
            nn.init.zeros_(self.table.weight)
        self.register_buffer("idf", torch.zeros(buckets + 1))

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
        rows = [hashed(text, self.buckets) or (0,) for text in texts]
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(n, dimension)`; zeros for a text of unknown features alone."""
        weights = self.idf[tokens]
        weights = weights / weights.norm(dim=1, keepdim=True).clamp(min=1e-12)
        # Without a tensor of all features' vectors: a description has a thousand.
        return F.embedding_bag(
            tokens, self.table.weight, mode="sum", per_sample_weights=weights.to(self.table.weight)
        )

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the table, or not; it has no blocks."""
        self.requires_grad_(embeddings)


class TextTowers(nn.Module):
    """One or several towers; their features stand side by side."""

    def __init__(self, parts: Mapping[str, TextTower]) -> None:
        super().__init__()
        self.names, self.towers = tuple(parts), list(parts.values())
        self.parts = nn.ModuleList(self.towers)
        self.dimension = sum(tower.dimension for tower in self.towers)

    def part(self, name: str) -> Any:
        """The tower of that name."""
        return self.towers[self.names.index(name)]

    def columns(self, name: str) -> Tensor:
        """Where that tower's features stand among all, `(its dimension,)`, int64."""
        place = self.names.index(name)
        start = sum(tower.dimension for tower in self.towers[:place])
        return torch.arange(start, start + self.towers[place].dimension)

    def fit(self, texts: Sequence[str]) -> None:
        """Let each tower look at the training texts once."""
        for tower in self.towers:
            tower.fit(in_small_letters(texts))

    def tokenize(self, texts: Sequence[str]) -> list[Tensor]:
        """What :meth:`forward` takes, a tensor of `n` rows for each tower."""
        return [tower.tokenize(in_small_letters(texts)) for tower in self.towers]

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """`(n, dimension)`."""
        return torch.cat([part(rows) for part, rows in zip(self.parts, tokens, strict=True)], dim=1)

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the last `blocks` blocks (-1 all, 0 none), and the embeddings or not."""
        for tower in self.towers:
            tower.train_last(blocks, embeddings)

    def save_files(self, folder: Path) -> None:
        """Write what the towers need beside their weights."""
        for number, tower in enumerate(self.towers):
            tower.save_files(folder / f"tower-{number}")
