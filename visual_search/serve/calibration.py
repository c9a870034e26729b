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
Steps = tuple[list[float], list[float]]
"""Of an isotonic regression: values, and their probabilities."""


@dataclass(frozen=True)
class Calibration:
    """Of one model on one index; its values are JSON as they stand."""

    slopes: tuple[float, float]
    """Of the first hit's score and of its lead over the next product."""
    first: Steps
    """Probability of the first hit by the weighted sum of both."""
    any_hit: Steps
    """The same for any hit by its score alone."""
    error: float
    """Expected calibration error on queries that were not fitted on, 0..1."""
    queries: int
    reliability: Sequence[tuple[float, float, float]] = ()
    """Of each tenth that was said: mean probability, share that was right, share of queries."""

    def probability(self, scores: Sequence[float]) -> float:
        """That the first of some hits, best first, is the product; one hit a product.

        Of one that filters have left alone nobody knows a lead: it has none.
        """
        lead = scores[0] - scores[:2][-1]
        return float(np.interp(np.dot([scores[0], lead], self.slopes), *self.first))

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
        UserError: for too few queries, or where all or none of a fold's are answered rightly.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    first, products = right[:, 0], len(np.unique(groups))
    few = UserError(
        f"{products} judged products, {int(first.sum())} of {len(first)} answers "
        f"right, are too few to calibrate on: judge {LEAST_QUERIES} products or more"
    )
    if products < LEAST_QUERIES:
        raise few
    features = np.column_stack([scores[:, 0], scores[:, 0] - scores[:, 1]]).astype(np.float64)
    weights = np.where(absent, ABSENT_SHARE / (1 - ABSENT_SHARE), 1.0)

    def fitted(rows: Any) -> tuple[np.ndarray, Steps]:
        if len(np.unique(first[rows])) < 2:
            raise few
        model = LogisticRegression(C=1e4, max_iter=1000)
        slopes = model.fit(features[rows], first[rows], weights[rows]).coef_[0]
        return slopes, _isotonic(features[rows] @ slopes, first[rows], weights[rows])

    said = np.zeros(len(first))
    for known, asked in GroupKFold(FOLDS).split(features, groups=groups):
        slopes, steps = fitted(known)
        said[asked] = np.interp(features[asked] @ slopes, *steps)
    reliability = []
    tenths = np.minimum((said * BINS).astype(int), BINS - 1)
    for tenth in np.unique(tenths):
        rows = tenths == tenth
        means = np.average(np.stack([said, first])[:, rows], axis=1, weights=weights[rows])
        reliability.append((*means.tolist(), float(weights[rows].sum() / weights.sum())))
    error = sum(abs(mean - share) * part for mean, share, part in reliability)
    slopes, steps = fitted(slice(None))
    any_hit = _isotonic(scores.ravel(), right.ravel(), weights.repeat(scores.shape[1]))
    return Calibration(tuple(slopes.tolist()), steps, any_hit, error, len(first), reliability)


def _isotonic(values: np.ndarray, right: np.ndarray, weights: np.ndarray) -> Steps:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1).fit(values, right.astype(float), weights)
    return fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist()


def draw_reliability(calibration: Calibration, file: Path) -> None:
    """Draw how often was right what was said, on queries that were not fitted on, as a png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.4), layout="constrained")
    title = f"{calibration.queries} answers, error {calibration.error:.3f}"
    axes = figure.subplots(subplot_kw={"title": title})
    axes.set(xlabel="probability that was said", ylabel="share that was right")
    axes.plot([0, 1], [0, 1], "--", color="0.7")
    axes.plot(*np.array(calibration.reliability).T[:2], marker="o")
    for said, was, share in calibration.reliability:
        axes.annotate(f"{share:.0%}", (said, was), (5, -11), textcoords="offset points", fontsize=8)
    write_figure(file, figure)
