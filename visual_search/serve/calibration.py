"""From cosines to the probability that a hit is the product that was asked for.

Fitted on queries whose product is known, each asked twice: of the whole index, and of the index
without its product, as if the shop did not have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.files import write_figure

LEAST_QUERIES = 40
ABSENT_SHARE = 0.25
"""How many of all queries are taken to ask for what is not there."""
FOLDS = 5
BINS = 10
SURE, LIKELY = 0.8, 0.4
"""Probabilities from which a hit is called so; below it is "perhaps"."""


@dataclass(frozen=True)
class Calibration:
    """Of one model on one index; its values are JSON as they stand."""

    slopes: tuple[float, float]
    """Of the first hit's score and of its lead over the next product."""
    first: tuple[list[float], list[float]]
    """Steps of the isotonic regression: weighted sum of both, and probability."""
    any_hit: tuple[list[float], list[float]]
    """The same for any hit by its score alone."""
    error: float
    """Expected calibration error on queries that were not fitted on, 0..1."""
    queries: int
    reliability: Sequence[tuple[float, float, float]] = ()
    """Of each tenth that was said: mean probability, share that was right, share of queries."""

    def probability(self, scores: Sequence[float]) -> float:
        """That the first of some hits, best first, is the product; one hit a product."""
        return float(np.interp(_features([scores]) @ np.array(self.slopes), *self.first)[0])

    def word(self, score: float) -> str:
        """How sure a hit is: sure, likely or perhaps."""
        probability = np.interp(score, *self.any_hit)
        return "sure" if probability >= SURE else "likely" if probability >= LIKELY else "perhaps"


def fit(
    scores: np.ndarray, right: np.ndarray, groups: np.ndarray, absent: np.ndarray
) -> Calibration:
    """Fit on answered queries, each with its product in the index and without.

    Logistic regression weighs score and lead, isotonic regression makes a probability of it. The
    error is of five folds, no product in two of them.

    Args:
        scores: `(queries, hits)`, falling, a product each, two hits or more.
        right: `(queries, hits)`, bool: whether a hit is the query's product.
        groups: `(queries,)`, the product of each query.
        absent: `(queries,)`, bool: whether it was asked without its product; these count less
            than the others, so that they make up :data:`ABSENT_SHARE`.

    Raises:
        UserError: for too few queries, or where all or none are answered rightly.
    """
    from sklearn.model_selection import GroupKFold

    first = right[:, 0]
    if len(np.unique(groups)) < LEAST_QUERIES or first.all() or not first.any():
        raise UserError(
            f"{len(np.unique(groups))} judged products, {int(first.sum())} of {len(first)} answers "
            f"right, are too few to calibrate on: judge {LEAST_QUERIES} products or more"
        )
    features = _features(scores)
    weights = np.where(absent, ABSENT_SHARE / (1 - ABSENT_SHARE), 1.0)
    held_out = np.zeros(len(first))
    for fitted, asked in GroupKFold(FOLDS).split(features, groups=groups):
        slopes, steps = _fit_first(features[fitted], first[fitted], weights[fitted])
        held_out[asked] = np.interp(features[asked] @ np.array(slopes), *steps)
    reliability = _reliability(held_out, first, weights)
    error = sum(abs(said - was) * share for said, was, share in reliability)
    slopes, steps = _fit_first(features, first, weights)
    hits = scores.shape[1]
    any_hit = _isotonic(scores.ravel(), right.ravel(), weights.repeat(hits))
    return Calibration(slopes, steps, any_hit, error, len(first), reliability)


def _features(scores: Any) -> np.ndarray:
    """Score of the first hit, and its lead over the second; over 0 where there is none."""
    rows = [(row[0], row[0] - (row[1] if len(row) > 1 else 0.0)) for row in scores]
    return np.array(rows, dtype=np.float64)


Steps = tuple[list[float], list[float]]


def _fit_first(
    features: np.ndarray, right: np.ndarray, weights: np.ndarray
) -> tuple[tuple[float, float], Steps]:
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e4, max_iter=1000).fit(features, right, weights)
    score, lead = map(float, fitted.coef_[0])
    return (score, lead), _isotonic(features @ np.array([score, lead]), right, weights)


def _isotonic(values: np.ndarray, right: np.ndarray, weights: np.ndarray) -> Steps:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1).fit(values, right.astype(float), weights)
    return fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist()


def _reliability(
    said: np.ndarray, right: np.ndarray, weights: np.ndarray
) -> list[tuple[float, float, float]]:
    tenth = np.minimum((said * BINS).astype(int), BINS - 1)
    shares = np.bincount(tenth, weights, BINS) / weights.sum()
    return [
        (
            float(np.average(said[tenth == bin_], weights=weights[tenth == bin_])),
            float(np.average(right[tenth == bin_], weights=weights[tenth == bin_])),
            float(share),
        )
        for bin_, share in enumerate(shares)
        if share
    ]


def draw_reliability(calibration: Calibration, file: Path) -> None:
    """Draw how often was right what was said, on queries that were not fitted on, as a png."""
    from matplotlib.figure import Figure

    said, was, shares = map(np.array, zip(*calibration.reliability, strict=True))
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--")
    axes.plot(said, was, marker="o")
    for x, y, share in zip(said, was, shares, strict=True):
        words = f"{share:.0%}"
        axes.annotate(words, (x, y), textcoords="offset points", xytext=(5, -11), fontsize=8)
    axes.set(xlabel="probability that was said", ylabel="share that was right")
    axes.set_title(f"{calibration.queries} answers, error {calibration.error:.3f}", fontsize=10)
    write_figure(file, figure)
