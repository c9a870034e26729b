"""Two models on the same tasks: differences, how certain they are, and what they come to.

An interval is the expanded percentile interval of Hesterberg (2015, "What Teachers Should Know
About the Bootstrap", section 4.2): percentiles of the means of products drawn with replacement,
taken a little further out, as Student's t is wider than the normal distribution and a drawn
variance (n - 1) / n too small. Plain percentiles cover less than they promise with a few dozen
products.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.files import write_json, write_text
from visual_search.common.page import Section, markdown, write_page
from visual_search.evaluation.metrics import METRICS
from visual_search.evaluation.report import thumbnails
from visual_search.evaluation.run_tasks import Asked
from visual_search.evaluation.scores import TaskScores
from visual_search.evaluation.tasks import QUERIES_SHOWN

DRAWS = 4000
MIN_DIFFERING = 10
"""Of fewer clusters with a value other than zero no bootstrap knows how far the mean may lie."""
# Numbers drawn at once: 2^22 are 32 MB.
AT_ONCE = 1 << 22
BETTER_A, BETTER_B, UNDECIDED = "A is better", "B is better", "undecided"
CHANCE = (
    "An interval is wrong one time in twenty: of twenty tasks on which two models are equal, one "
    "looks decided. The verdict goes by the interval over products: images of one product are no "
    "independent witnesses."
)


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies."""

    mean: float
    low: float
    high: float
    clusters: int
    """How many independent things it is over."""
    differing: int
    """How many of them have a value other than zero."""

    @property
    def decided(self) -> bool:
        """Whether zero lies outside, and enough clusters differ to say so."""
        return (self.low > 0 or self.high < 0) and self.differing >= MIN_DIFFERING

    def __str__(self) -> str:
        return f"{self.low:+.4f} … {self.high:+.4f}"


def mean_interval(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The 95 % interval of the mean of values that come in clusters.

    The mean is over the values, not over the clusters: a cluster of ten counts ten times. For
    the paired comparison of two models give the differences of their scores.

    Args:
        values: `(n,)`, finite.
        clusters: `(n,)`, the cluster of each, of any type; None: each is its own.
        draws: of the bootstrap.
        seed: the same seed gives the same interval.

    Returns:
        With infinite ends where there is one cluster only: nothing is known.

    Raises:
        ValueError: without a value.
    """
    from scipy.stats import bootstrap

    if not len(values):
        raise ValueError("there is no value to take the mean of")
    rows = (
        np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    )
    sums, sizes = np.bincount(rows, weights=values), np.bincount(rows)
    count, mean = len(sums), float(np.mean(values))
    differing = int(np.count_nonzero(sums))
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count, differing)
    found = bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,  # clusters are drawn, with all their values
        vectorized=True,
        n_resamples=draws,
        batch=max(AT_ONCE // count, 1),
        confidence_level=1 - 2 * expanded_tail(0.025, count),
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), count, differing)


def expanded_tail(tail: float, count: int) -> float:
    """The percentile, 0..1, that stands for `tail` with `count` clusters.

    `Phi(sqrt(n / (n - 1)) * t)`, t being the quantile of Student's distribution, n - 1 degrees.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, tail)))


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
        return (self.b.values[self.metric] - self.a.values[self.metric]).to_numpy()

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
            "over_queries": asdict(self.over_queries),
            "over_products": asdict(self.over_products),
            "verdict": self.verdict,
        }


def compare(a: TaskScores, b: TaskScores, metric: str = "") -> TaskComparison:
    """Compare two models on a task.

    Args:
        a: scores of the one.
        b: of the other, on the same queries.
        metric: of :data:`visual_search.evaluation.metrics.METRICS`; empty takes the task's own,
            and mAP@1000 where that is GAP, which is no mean over queries.

    Raises:
        UserError: for a metric there is not.
    """
    metric = metric or a.task.config.metric
    metric = "mAP@1000" if metric == "GAP" else metric
    if metric not in METRICS:
        raise UserError(f"--metric {metric!r} is unknown; write one of {', '.join(METRICS)}")
    kept = a.scored
    differences = (b.values[metric] - a.values[metric])[kept].to_numpy()
    products = a.task.query_labels[kept]
    return TaskComparison(
        a, b, metric, mean_interval(differences), mean_interval(differences, products)
    )


def verdict(comparisons: Sequence[TaskComparison]) -> str:
    """What all tasks say, in one sentence."""
    said, number = Counter(one.verdict for one in comparisons), len(comparisons)
    parts = [
        f"{words} on {said[words]} of {number} tasks"
        for words in (BETTER_B, BETTER_A)
        if said[words]
    ]
    if said[UNDECIDED]:
        parts.append(f"undecided on {said[UNDECIDED]}" + ("" if parts else f" of {number}"))
    return ", ".join(parts)


def comparison_rows(comparisons: Sequence[TaskComparison]) -> list[list[str]]:
    """The table of differences, heading first."""
    head = ["task", "metric", "A", "B", "B - A", "95 % over queries", "95 % over products"]
    rows = [[*head, "products", "verdict"]]
    for one in comparisons:
        means = [f"{side.means()[one.metric]:.4f}" for side in (one.a, one.b)]
        found = one.over_products
        intervals = [f"{found.mean:+.4f}", str(one.over_queries), str(found)]
        said = one.verdict if one.verdict == UNDECIDED else f"**{one.verdict}**"
        title = one.a.task.title
        rows.append([title, one.metric, *means, *intervals, f"{found.clusters:,}", said])
    return rows


def most_changed(comparison: TaskComparison, count: int) -> list[int]:
    """Queries whose score changed most: half of them gains, half losses, the largest first.

    Of equal changes those with the largest change of average precision.
    """
    finer = (comparison.b.values["mAP@1000"] - comparison.a.values["mAP@1000"]).to_numpy()
    main = np.nan_to_num(comparison.differences)
    chosen: list[int] = []
    for sign in (1, -1):
        order = np.lexsort((-sign * np.nan_to_num(finer), -sign * main))
        moved = [int(q) for q in order if sign * main[q] > 0 or sign * finer[q] > 0]
        chosen += moved[: count // 2]
    return chosen


def compare_runs(a: Path, b: Path, asked: Asked, metric: str = "") -> None:
    """Compare two models on every task whose data is there, and write table and pictures.

    Args:
        a: a run folder, a checkpoint, or an export's folder.
        b: the other.
        asked: the tasks.
        metric: see :func:`visual_search.evaluation.compare.compare`.

    Raises:
        UserError: see :func:`visual_search.evaluation.run_tasks.evaluate_tasks`.
    """
    folder, steps = asked.folder(a, b), [asked.steps_of(run) for run in (a, b)]
    tasks, skipped = asked.ready(a, b)
    comparisons, sections = [], []
    for task in tasks:
        models = asked.embedded(task, a, b)
        sides = [task.score(model, own) for model, own in zip(models, steps, strict=True)]
        comparison = compare(sides[0], sides[1], metric)
        comparisons.append(comparison)
        changed = most_changed(comparison, QUERIES_SHOWN)
        shown = []
        for name, scores, model in zip("AB", sides, models, strict=True):
            headings = [f"{name}: AP {scores.values['mAP@1000'][query]:.3f}" for query in changed]
            shown.append(task.rows(scores, model, changed, headings))
        title = f"{task.title}: the queries that changed most, first gains, then losses"
        pairs = [*chain.from_iterable(zip(*shown, strict=True))]
        sections.append(Section(title, [task.legend], rows=pairs))
    rows, said = comparison_rows(comparisons), verdict(comparisons)
    table = f"A: {a}\nB: {b}\n\n{markdown(rows)}"
    values = {one.a.task.name: one.as_json() for one in comparisons}
    facts = {"A": str(a), "B": str(b)}
    write_json(folder / "comparison.json", {**facts, "verdict": said, "tasks": values})
    write_text(folder / "comparison.md", f"# {said}\n\n{table}\n\n{CHANCE}\n")
    remarks = [f"{name} was not run: {reason}" for name, reason in skipped.items()]
    top = Section("", [CHANCE, *remarks], facts, tables={"": rows})
    write_page(folder / "comparison.html", said, [top, *sections], thumbnails)
    print(f"\n{table}\n\n{said}")
    print(f"report: {folder / 'comparison.html'}, numbers: {folder / 'comparison.json'}")
