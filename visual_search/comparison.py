"""Two models on the same tasks: differences, how certain they are, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visual_search.bootstrap import Interval, mean_interval
from visual_search.errors import UserError
from visual_search.retrieval_metrics import METRICS
from visual_search.task_scores import TaskScores

BETTER_A, BETTER_B, UNDECIDED = "A is better", "B is better", "undecided"


@dataclass(frozen=True)
class TaskComparison:
    """Two models on one task."""

    a: TaskScores
    b: TaskScores
    metric: str
    over_queries: Interval
    """Of B - A, each query drawn by itself."""
    over_products: Interval
    """Of B - A, products drawn with all their queries; what the verdict goes by."""

    @property
    def differences(self) -> np.ndarray:
        """`(n_queries,)`, B - A; NaN for a query with nothing to find."""
        return self.b.values[self.metric] - self.a.values[self.metric]

    @property
    def verdict(self) -> str:
        """Which is better, if that can be said."""
        if not self.over_products.decided:
            return UNDECIDED
        return BETTER_B if self.over_products.mean > 0 else BETTER_A

    def as_json(self) -> dict[str, Any]:
        """For comparison.json."""
        return {
            "title": self.a.task.title,
            "metric": self.metric,
            "A": self.a.means()[self.metric],
            "B": self.b.means()[self.metric],
            "over_queries": self.over_queries.as_json(),
            "over_products": self.over_products.as_json(),
            "verdict": self.verdict,
        }


def compare(a: TaskScores, b: TaskScores, metric: str = "") -> TaskComparison:
    """Compare two models on a task.

    Args:
        a: scores of the one.
        b: of the other, on the same queries.
        metric: of :data:`visual_search.retrieval_metrics.METRICS`; empty takes the task's own,
            and mAP@1000 where that is GAP, which is no mean over queries.

    Raises:
        UserError: for a metric there is not.
    """
    metric = metric or a.task.config.metric
    metric = "mAP@1000" if metric == "GAP" else metric
    if metric not in METRICS:
        raise UserError(f"--metric {metric!r} is unknown; write one of {', '.join(METRICS)}")
    kept = a.scored
    differences = (b.values[metric] - a.values[metric])[kept]
    products = a.task.query_labels[kept]
    return TaskComparison(
        a, b, metric, mean_interval(differences), mean_interval(differences, products)
    )


def verdict(comparisons: Sequence[TaskComparison]) -> str:
    """What all tasks say, in one sentence."""
    said = [one.verdict for one in comparisons]
    number, parts = len(said), []
    for words in (BETTER_B, BETTER_A):
        if said.count(words):
            parts.append(f"{words} on {said.count(words)} of {number} tasks")
    if said.count(UNDECIDED):
        parts.append(f"undecided on {said.count(UNDECIDED)}" + ("" if parts else f" of {number}"))
    return ", ".join(parts)


def comparison_rows(comparisons: Sequence[TaskComparison]) -> list[list[str]]:
    """The table of differences, heading first."""
    head = ["task", "metric", "A", "B", "B - A", "95 % over queries", "95 % over products"]
    rows = [[*head, "products", "verdict"]]
    for one in comparisons:
        values = one.as_json()
        rows.append(
            [
                one.a.task.title,
                one.metric,
                f"{values['A']:.4f}",
                f"{values['B']:.4f}",
                f"{one.over_products.mean:+.4f}",
                _ends(one.over_queries),
                _ends(one.over_products),
                f"{one.over_products.clusters:,}",
                one.verdict if one.verdict == UNDECIDED else f"**{one.verdict}**",
            ]
        )
    return rows


def _ends(interval: Interval) -> str:
    return f"{interval.low:+.4f} … {interval.high:+.4f}"


def most_changed(comparison: TaskComparison, count: int) -> list[int]:
    """Queries whose score changed most: half of them gains, half losses, the largest first.

    Of equal changes those with the largest change of average precision.
    """
    finer = comparison.b.values["mAP@1000"] - comparison.a.values["mAP@1000"]
    main = np.nan_to_num(comparison.differences)
    chosen: list[int] = []
    for sign in (1, -1):
        order = np.lexsort((-sign * np.nan_to_num(finer), -sign * main))
        moved = [int(q) for q in order if sign * main[q] > 0 or sign * finer[q] > 0]
        chosen += moved[: count // 2]
    return chosen
