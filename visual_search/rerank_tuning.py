"""Choosing re-ranking steps on half of a development set's queries, and judging on the other.

The halves share no product. Each half is ranked by itself, as if the other queries were not there,
for some steps look at all queries of a ranking together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from visual_search.metrics import MAX_PREDICTIONS, mean_average_precision
from visual_search.reciprocal import KReciprocal
from visual_search.rerank import Step, rank
from visual_search.vector_steps import (
    PCA,
    Center,
    DatabaseAugmentation,
    Power,
    QueryExpansion,
    SwappedDatabaseAugmentation,
    TwoPassExpansion,
    ZScore,
)

Steps = tuple[Step, ...]

# A change has to be worth this much mAP on the half it is chosen on, or the simpler one stays.
MIN_GAIN = 0.0005


def _grid(kind: Callable[..., Step], **values: Iterable[Any]) -> list[Step | None]:
    """None, and the step with each combination of parameters."""
    chosen = [dict(zip(values, choice, strict=True)) for choice in product(*values.values())]
    return [None, *(kind(**parameters) for parameters in chosen)]


# What may stand at each place, in order of application; None leaves the place empty.
SLOTS: tuple[list[Step | None], ...] = (
    _grid(Power, exponent=(0.5, 0.7)),
    [None, Center("joint"), Center("sides"), Center("gallery"), ZScore()],
    _grid(PCA, dimension=(128, 256, 512), power=(0.25, 0.4, 0.6)),
    _grid(
        DatabaseAugmentation, source=("gallery", "queries"), neighbours=(1, 3, 6), alpha=(1.0, 3.0)
    ),
    _grid(QueryExpansion, source=("gallery", "queries"), neighbours=(1, 3, 6), alpha=(1.0, 3.0)),
    _grid(KReciprocal, k1=(6, 12, 20), k2=(1, 3, 6), weight=(0.3, 0.5, 0.7, 0.85)),
)

RECIPES: dict[str, Steps] = {
    "plain cosine": (),
    "centred": (Center("joint"),),
    "centred by sides": (Center("sides"),),
    "swapped DBA": (SwappedDatabaseAugmentation(),),
    "DBA, two-pass expansion": (Center("joint"), DatabaseAugmentation(), TwoPassExpansion()),
    "k-reciprocal": (Center("joint"), KReciprocal()),
}
"""Known ways, to start from and to compare with."""


@dataclass
class Half:
    """Some queries of a development set before the whole gallery."""

    queries: Tensor
    gallery: Tensor
    query_products: np.ndarray
    gallery_products: np.ndarray
    _kept: dict[Steps, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _scores: dict[Steps, float] = field(default_factory=dict)

    def score(self, steps: Steps) -> float:
        """mAP, 0..1, of the ranking with these steps."""
        if steps not in self._scores:
            last = steps[-1:] if steps and isinstance(steps[-1], KReciprocal) else ()
            sides = self._after(steps[: len(steps) - len(last)])
            ranks = rank(*sides, last, MAX_PREDICTIONS).numpy()
            self._scores[steps] = mean_average_precision(
                ranks, self.gallery_products, self.query_products
            )
        return self._scores[steps]

    def _after(self, steps: Steps) -> tuple[Tensor, Tensor]:
        """Both sides after vector steps; the last few answers are kept, for prefixes recur."""
        if not steps:
            return self.queries, self.gallery
        if steps not in self._kept:
            step = steps[-1]
            assert not isinstance(step, KReciprocal)
            made = step(*self._after(steps[:-1]))
            while len(self._kept) >= 6:
                self._kept.pop(next(iter(self._kept)))
            self._kept[steps] = made
        return self._kept[steps]


def halves(
    queries: Tensor,
    gallery: Tensor,
    query_products: np.ndarray,
    gallery_products: np.ndarray,
    seed: int,
) -> tuple[Half, Half]:
    """Split the queries in two by product, at random; the gallery stays whole on both sides."""
    names = np.unique(query_products)
    shuffled = np.random.default_rng(seed).permutation(names)
    first = np.isin(query_products, shuffled[: len(names) // 2])
    one, other = (
        Half(queries[np.flatnonzero(part)], gallery, query_products[part], gallery_products)
        for part in (first, ~first)
    )
    return one, other


def choose(half: Half, rounds: int = 2, on_score: Callable[[], object] = lambda: None) -> Steps:
    """The steps with the best mAP on `half`, by turns over the slots.

    Starts from the better of nothing and centring by sides; each round tries every option of
    each slot with the others held, and keeps one that gains :data:`MIN_GAIN`. A known recipe that
    scores higher still is taken instead.

    Args:
        half: the queries to choose on.
        rounds: over all slots; it ends earlier when a round changes nothing.
        on_score: called after each score.
    """
    slots: list[Step | None] = [None] * len(SLOTS)

    def score(candidate: Sequence[Step | None]) -> float:
        value = half.score(tuple(step for step in candidate if step is not None))
        on_score()
        return value

    best = score(slots)
    for _ in range(rounds):
        before = best
        for place, options in enumerate(SLOTS):
            tried = [
                (score([*slots[:place], option, *slots[place + 1 :]]), -number)
                for number, option in enumerate(options)
            ]
            value, number = max(tried)
            if value >= best + MIN_GAIN:
                best, slots[place] = value, options[-number]
        if best == before:
            break
    chosen = tuple(step for step in slots if step is not None)
    return max((chosen, *RECIPES.values()), key=half.score)


def trials(rounds: int = 2) -> int:
    """How many scores :func:`choose` computes at most."""
    return 1 + rounds * sum(len(options) for options in SLOTS)
