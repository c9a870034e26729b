"""Choosing re-ranking steps on half of a development set's queries, and judging on the other.

The halves share no product. Each half is ranked by itself, as if the other queries were not there,
for some steps look at all queries of a ranking together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visual_search.common.files import write_json
from visual_search.common.page import markdown
from visual_search.common.progress import progress_bar
from visual_search.evaluation.dev_set import EmbeddedDevSet
from visual_search.model.checkpoint import describe_model, read_description
from visual_search.ranking.k_reciprocal import KReciprocal
from visual_search.ranking.rerank import Step, describe_steps, format_steps
from visual_search.ranking.rerank_steps import (
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
Slots = tuple[Step | None, ...]
Score = Callable[[Steps], np.ndarray]
"""Average precision of each of some queries with these steps, `(n_queries,)`, 0..1."""

# A change has to gain this many standard errors of the gain, or what was there stays: the best of
# a grid is always better on the queries it was chosen on.
MIN_DEVIATIONS = 1.5
ROUNDS = 2


def _grid(kind: Callable[..., Step], **values: Iterable[Any]) -> list[Step | None]:
    """None, and the step with each combination of parameters."""
    chosen = [dict(zip(values, choice, strict=True)) for choice in product(*values.values())]
    return [None, *(kind(**parameters) for parameters in chosen)]


# What may stand at each place, in order of application; None leaves the place empty.
SLOTS: tuple[list[Step | None], ...] = (
    _grid(Power, exponent=(0.5, 0.7)),
    [None, Center("joint"), Center("sides"), Center("gallery"), ZScore()],
    _grid(PCA, dimension=(128, 256, 512), power=(0.25, 0.5, 0.75)),
    [
        *_grid(
            DatabaseAugmentation,
            source=("gallery", "queries"),
            neighbours=(1, 3, 6),
            alpha=(1.0, 3.0),
        ),
        SwappedDatabaseAugmentation(),
    ],
    [
        *_grid(
            QueryExpansion, source=("gallery", "queries"), neighbours=(1, 3, 6), alpha=(1.0, 3.0)
        ),
        TwoPassExpansion(),
    ],
    _grid(KReciprocal, k1=(6, 12, 20), k2=(1, 3, 6), weight=(0.3, 0.5, 0.7, 0.85)),
)

_WHITENED: Slots = (Power(0.5), Center("sides"), PCA(256, 0.5), None, None, None)
_OVERLAP = KReciprocal(12, 3, 0.5)

RECIPES: dict[str, Slots] = {
    "plain cosine": (None, None, None, None, None, None),
    "centred": (None, Center("joint"), None, None, None, None),
    "centred by sides": (None, Center("sides"), None, None, None, None),
    "swapped DBA": (None, None, None, SwappedDatabaseAugmentation(), None, None),
    "DBA, two-pass expansion": (
        *(None, Center("joint"), None),
        *(DatabaseAugmentation(5, 1.0), TwoPassExpansion(), None),
    ),
    "k-reciprocal": (None, Center("joint"), None, None, None, KReciprocal()),
    "whitened": _WHITENED,
    "whitened, k-reciprocal": (*_WHITENED[:5], _OVERLAP),
    "whitened, expanded, k-reciprocal": (
        *_WHITENED[:4],
        *(QueryExpansion(3, 3.0, "queries"), _OVERLAP),
    ),
}
"""Known ways: one step of each slot. The search starts from the best of them."""


def steps_of(slots: Slots) -> Steps:
    """The steps of the slots that are not empty."""
    return tuple(step for step in slots if step is not None)


def halves(model: EmbeddedDevSet, seed: int) -> tuple[EmbeddedDevSet, EmbeddedDevSet]:
    """Split the queries in two by product, at random; the gallery stays whole on both sides."""
    dev_set = model.dev_set
    names = np.unique(dev_set.query_products)
    shuffled = np.random.default_rng(seed).permutation(names)
    first = np.isin(dev_set.query_products, shuffled[: len(names) // 2])

    def half(rows: np.ndarray) -> EmbeddedDevSet:
        queries = [dev_set.queries[row] for row in rows]
        part = replace(dev_set, queries=queries, query_products=dev_set.query_products[rows])
        return replace(model, dev_set=part, queries=model.queries[rows])

    return half(np.flatnonzero(first)), half(np.flatnonzero(~first))


def scorer(half: EmbeddedDevSet) -> Score:
    """Ranks some queries; every answer is kept, and the last vectors, for beginnings recur."""

    @lru_cache(maxsize=6)
    def after(steps: Steps) -> tuple[Tensor, Tensor]:
        if not steps:
            return half.queries, half.gallery
        step = steps[-1]
        assert not isinstance(step, KReciprocal)
        return step(*after(steps[:-1]))

    @cache
    def score(steps: Steps) -> np.ndarray:
        vectors = len(steps) - sum(isinstance(step, KReciprocal) for step in steps[-1:])
        queries, gallery = after(steps[:vectors])
        return replace(half, queries=queries, gallery=gallery).score(steps[vectors:])

    return score


def gain(new: np.ndarray, old: np.ndarray, products: np.ndarray) -> tuple[float, float]:
    """How much mAP one ranking gains over another, and the standard error of that.

    Queries of one product rise and fall together, so products are what is sampled.

    Args:
        new: `(n_queries,)`, average precision.
        old: the same of the other.
        products: `(n_queries,)`, of each query.
    """
    differences = new - old
    mean = differences.mean()
    _, product_of = np.unique(products, return_inverse=True)
    of_product = np.bincount(product_of, weights=differences - mean)
    return float(mean), float(np.linalg.norm(of_product) / len(differences))


def choose(score: Score, products: np.ndarray, label: str = "re-ranking") -> Steps:
    """The steps with the best mAP, as far as the queries can tell.

    Starts from the best of :data:`RECIPES`. Each of :data:`ROUNDS` rounds goes over the slots and
    takes the best option of one with the others held, if it gains :data:`MIN_DEVIATIONS` standard
    errors; a round that changes nothing is the last.

    Args:
        score: of the queries to choose on.
        products: `(n_queries,)`, theirs.
        label: of the progress bar.
    """
    most = len(RECIPES) + ROUNDS * sum(map(len, SLOTS))
    with progress_bar(label, "ranking", total=most) as bar:

        def mean(candidate: Slots) -> float:
            bar.update(1)
            return float(score(steps_of(candidate)).mean())

        chosen = max(RECIPES.values(), key=mean)
        for _ in range(ROUNDS):
            before = chosen
            for place, options in enumerate(SLOTS):
                tried = [(*chosen[:place], option, *chosen[place + 1 :]) for option in options]
                best = max(tried, key=mean)
                more, error = gain(score(steps_of(best)), score(steps_of(chosen)), products)
                if more > MIN_DEVIATIONS * error:
                    chosen = best
            if chosen == before:
                break
    return steps_of(chosen)


def tune(model: EmbeddedDevSet, splits: int, seed: int, data: Path) -> None:
    """Choose steps on several splits, print what each gives, and write the first split's choice.

    They are written only when they beat plain cosine on the half they were not chosen on, on
    average over the splits and on the first.

    Args:
        model: whose `model.json` is written.
        splits: of the queries in two halves.
        seed: of the first split; the others follow.
        data: where the development set is from.
    """
    scores: dict[str, list[float]] = {name: [] for name in (*RECIPES, "chosen")}
    chosen = []
    for number in range(splits):
        half, other = halves(model, seed + number)
        seen, unseen = scorer(half), scorer(other)
        label = f"split {number + 1} of {splits}"
        steps = choose(seen, half.dev_set.query_products, label)
        chosen.append(steps)
        for name, recipe in RECIPES.items():
            scores[name].append(unseen(steps_of(recipe)).mean())
        scores["chosen"].append(unseen(steps).mean())
        print(f"{label}: {format_steps(steps)}")
        print(
            f"  mAP {seen(()).mean():.4f} -> {seen(steps).mean():.4f} on the half it was chosen "
            f"on, {unseen(()).mean():.4f} -> {unseen(steps).mean():.4f} on the other",
            flush=True,
        )
    plain = np.array(scores["plain cosine"])
    rows = [[f"on the half not chosen on ({splits} splits)", "mAP", "spread", "against plain"]]
    for name, values in scores.items():
        gains = np.array(values) / plain - 1
        against = f"{100 * gains.mean():+.1f} % ± {100 * gains.std():.1f}"
        rows.append([name, f"{np.mean(values):.4f}", f"{np.std(values):.4f}", against])
    print(f"\n{markdown(rows)}")
    # The gains of the last row, "chosen".
    if gains[0] > 0 and gains.mean() > 0:
        _write_steps(model.description, chosen[0], data, float(plain[0]), scores["chosen"][0])
        print(f"\nwrote split 1's choice into {model.description}")
        print("next: export the run, or python local_evaluation.py --weights <export>")
    else:
        print(
            f"\nnothing beats plain cosine on the other half: {model.description} stays as it was"
        )


def _write_steps(
    description: Path, steps: Steps, data: Path, plain: float, reranked: float
) -> None:
    """Write re-ranking steps, and what they were chosen by, into a `model.json`."""
    architecture, facts = read_description(description)
    facts["rerank"] = describe_steps(steps)
    facts["rerank_tuning"] = {
        "data": data.name,
        "plain_mAP": round(plain, 6),
        "reranked_mAP": round(reranked, 6),
        "measured_on": "the half of the queries that the steps were not chosen on",
    }
    write_json(description, describe_model(architecture, facts))
