"""Which of its queries a training photo is shown with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visual_search.pair_table import PairTable


@dataclass(frozen=True)
class ChosenTexts:
    """The texts of a batch."""

    texts: list[str]
    owners: Tensor | None
    """`(len(texts),)`, int64: the row of the batch that each is of; None where each has one."""
    ids: Tensor
    """`(n,)`, int64: equal where rows have the same texts."""


class QueryTexts:
    """Draws a query of each photo, or takes all; the draw depends on (seed, epoch, photo) alone."""

    def __init__(
        self,
        table: PairTable,
        column: str = "queries",
        how: str = "draw",
        most: int = 8,
        seed: int = 42,
        shuffled: bool = False,
    ) -> None:
        """
        Args:
            table: the training photos.
            column: queries or texts.
            how: draw or mean.
            most: of mean, texts of a photo at the most.
            seed: of the draws.
            shuffled: give each product the texts of another.
        """
        self.table, self.how, self.most, self.seed = table, how, most, seed
        self.rows: Sequence[list[str]] = table.texts if column == "texts" else table.queries
        _, first, self.groups = np.unique(table.groups, return_index=True, return_inverse=True)
        """`(n,)`, int64: the products, 0..g-1."""
        self.first = first
        self.photo_of: np.ndarray | None = None
        if shuffled:
            others = np.random.default_rng(seed).permutation(len(first))
            self.photo_of = first[others][self.groups]

    def of(self, photo: int) -> list[str]:
        """The texts that photo `photo` may be shown with, without repeats."""
        source = photo if self.photo_of is None else int(self.photo_of[photo])
        texts = [text for text in self.rows[source] if text.strip()]
        # A query of which cleaning left nothing is still what was typed.
        return list(dict.fromkeys(texts or self.table.queries[source]))

    def everything(self, most: int = 50_000) -> list[str]:
        """The texts of the photos, of at most so many spread over the table."""
        step = max(len(self.table) // most, 1)
        return [text for photo in range(0, len(self.table), step) for text in self.of(photo)]

    def chosen(self, photos: Tensor, labels: Tensor, epoch: int) -> ChosenTexts:
        """The texts of a batch.

        Args:
            photos: `(n,)`, the photos that were asked for.
            labels: `(n,)`, the products of those that are shown: where a broken photo was
                replaced by one of another product, its texts are that product's.
            epoch: of the draw.
        """
        texts: list[str] = []
        owners: list[int] = []
        keys: list[str] = []
        for row, (photo, label) in enumerate(zip(photos.tolist(), labels.tolist(), strict=True)):
            shown = photo if self.groups[photo] == label else int(self.first[label])
            known = self.of(shown)
            if self.how == "draw":
                draw = np.random.SeedSequence([self.seed, epoch, shown]).generate_state(1)
                known = [known[int(draw[0]) % len(known)]]
            texts += known[: self.most]
            owners += [row] * len(known[: self.most])
            keys.append(known[0] if self.how == "draw" else "\n".join(sorted(known)))
        every_row_one = len(texts) == len(keys)
        return ChosenTexts(
            texts,
            None if every_row_one else torch.tensor(owners),
            torch.tensor([_number(key) for key in keys]),
        )


def _number(text: str) -> int:
    """Of a text's content, so that equal texts have equal numbers in all processes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
