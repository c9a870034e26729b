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
import pandas as pd
from torch import Tensor

from visual_search.common.errors import UserError
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
_PLACES = {type(step): place for place, options in enumerate(SLOTS) for step in options}

_WHITENED = (Power(0.5), Center("sides"), PCA(256, 0.5))
_OVERLAP = KReciprocal(12, 3, 0.5)

RECIPES: dict[str, Steps] = {
    "plain cosine": (),
    "centred": (Center("joint"),),
    "centred by sides": (Center("sides"),),
    "swapped DBA": (SwappedDatabaseAugmentation(),),
    "DBA, two-pass expansion": (
        Center("joint"),
        DatabaseAugmentation(5, 1.0),
        TwoPassExpansion(),
    ),
    "k-reciprocal": (Center("joint"), KReciprocal()),
    "whitened": _WHITENED,
    "whitened, k-reciprocal": (*_WHITENED, _OVERLAP),
    "whitened, expanded, k-reciprocal": (*_WHITENED, QueryExpansion(3, 3.0, "queries"), _OVERLAP),
}
"""Known ways: at most one step of each slot, in their order. The search starts from the best."""


def halves(model: EmbeddedDevSet, seed: int) -> tuple[EmbeddedDevSet, EmbeddedDevSet]:
    """Split the queries in two by product, at random; the gallery stays whole on both sides.

    Raises:
        UserError: where all queries are of one product.
    """
    dev_set = model.dev_set
    names = np.unique(dev_set.query_products)
    if len(names) < 2:
        raise UserError("all queries are of one product: steps cannot be chosen on half of them")
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

        def mean(candidate: Steps) -> float:
            bar.update(1)
            return float(score(candidate).mean())

        chosen = max(RECIPES.values(), key=mean)
        for _ in range(ROUNDS):
            before = chosen
            for place, options in enumerate(SLOTS):
                front = [step for step in chosen if _PLACES[type(step)] < place]
                behind = [step for step in chosen if _PLACES[type(step)] > place]
                tried = [(*front, *([option] if option else ()), *behind) for option in options]
                best = max(tried, key=mean)
                more, error = gain(score(best), score(chosen), products)
                if more > MIN_DEVIATIONS * error:
                    chosen = best
            if chosen == before:
                break
    return chosen


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
    found, chosen = [], []
    for number in range(splits):
        half, other = halves(model, seed + number)
        seen, unseen = scorer(half), scorer(other)
        label = f"split {number + 1} of {splits}"
        steps = choose(seen, half.dev_set.query_products, label)
        chosen.append(steps)
        found.append(
            {name: unseen(way).mean() for name, way in (RECIPES | {"chosen": steps}).items()}
        )
        print(f"{label}: {format_steps(steps)}")
        print(
            f"  mAP {seen(()).mean():.4f} -> {seen(steps).mean():.4f} on the half it was chosen "
            f"on, {unseen(()).mean():.4f} -> {unseen(steps).mean():.4f} on the other",
            flush=True,
        )
    scores = pd.DataFrame(found)  # a row for each split
    gains = scores.div(scores["plain cosine"], axis="index") - 1
    rows = [[f"on the half not chosen on ({splits} splits)", "mAP", "spread", "against plain"]]
    for name, values in scores.items():
        against = f"{100 * gains[name].mean():+.1f} % ± {100 * gains[name].std(ddof=0):.1f}"
        rows.append([str(name), f"{values.mean():.4f}", f"{values.std(ddof=0):.4f}", against])
    print(f"\n{markdown(rows)}")
    if not (gains["chosen"][0] > 0 and gains["chosen"].mean() > 0):  # 0 of 0 is no number
        print(
            f"\nnothing beats plain cosine on the other half: {model.description} stays as it was"
        )
        return
    architecture, facts = read_description(model.description)
    facts["rerank"] = describe_steps(chosen[0])
    facts["rerank_tuning"] = {
        "data": data.name,
        "plain_mAP": round(scores["plain cosine"][0], 6),
        "reranked_mAP": round(scores["chosen"][0], 6),
        "measured_on": "the half of the queries that the steps were not chosen on",
    }
    write_json(model.description, describe_model(architecture, facts))
    print(f"\nwrote split 1's choice into {model.description}")
    print("next: export the run, or python local_evaluation.py --weights <export>")
