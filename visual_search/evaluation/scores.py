"""Scores of a model on retrieval tasks: of each query, class, domain and task, and their means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from visual_search.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from visual_search.evaluation.tasks import Task
    from visual_search.ranking.rerank import Step


@dataclass(frozen=True)
class TaskScores:
    """What a model reached on one task."""

    task: Task
    values: pd.DataFrame
    """Of each query each metric, 0..1; NaN for a query with nothing to find."""
    gap: float | None
    """GAP, 0..1, where the task has distractors and answers have a confidence."""
    steps: Sequence[Step] = ()
    """Of re-ranking, that were applied."""

    @property
    def scored(self) -> np.ndarray:
        """`(n_queries,)`, bool: which queries have something to find."""
        return self.values["mAP@1000"].notna().to_numpy()

    def means(self) -> dict[str, float]:
        """Mean of each metric over the queries that have something to find, and GAP if there is."""
        return _named(self.values.mean()) | ({} if self.gap is None else {"GAP": self.gap})

    @property
    def metric(self) -> str:
        """The metric that the task's competition uses; mAP@1000 where re-ranking left no GAP."""
        wanted = self.task.config.metric
        return wanted if wanted in self.means() else "mAP@1000"

    @property
    def headline(self) -> float:
        """The score by :attr:`metric`."""
        return self.means()[self.metric]

    def by(self, groups: np.ndarray) -> pd.DataFrame:
        """Mean of each metric, and number of `queries`, of each group that has one to score.

        Args:
            groups: `(n_queries,)`, such as the task's labels or domains.
        """
        grouped = self.values.assign(group=groups).dropna().groupby("group")
        return grouped.mean().assign(queries=grouped.size())

    def as_json(self) -> dict[str, Any]:
        """What results.json has of the task; over classes, rare ones count as much as common."""
        names = list(METRICS)
        return {
            "title": self.task.title,
            "metric": self.metric,
            "score": self.headline,
            "queries": int(self.scored.sum()),
            "distractor_queries": int((~self.scored).sum()),
            "gallery": self.task.gallery_size,
            "leave_one_out": self.task.leave_one_out,
            "reranked": bool(self.steps),
            "mean_over_queries": self.means(),
            "mean_over_classes": _named(self.by(self.task.query_labels)[names].mean()),
            "domains": self.by(self.task.domains)[names].to_dict("index"),
        }


def _named(means: pd.Series) -> dict[str, float]:
    return {str(name): float(mean) for name, mean in means.items()}


def over_tasks(scores: Sequence[TaskScores]) -> dict[str, dict[str, float]]:
    """The means that competitions use, over several tasks.

    Returns:
        `tasks`: each task counts alike; `queries`: each query does (the universal embedding
        challenge); `domains`: each domain does, a domain being the mean of its queries. And
        `competition`: `score`, the mean of the tasks' own metrics.
    """
    pooled = pd.concat([one.values.assign(domain=one.task.domains) for one in scores]).dropna()
    return {
        "tasks": _named(pd.DataFrame([one.values.mean() for one in scores]).mean()),
        "queries": _named(pooled[list(METRICS)].mean()),
        "domains": _named(pooled.groupby("domain").mean().mean()),
        "competition": {"score": float(np.mean([one.headline for one in scores]))},
    }


def score_rows(
    scores: Sequence[TaskScores], means: Mapping[str, Mapping[str, float]]
) -> list[list[str]]:
    """The table of tasks and of the means over them, heading first."""
    has_gap = any(one.gap is not None for one in scores)
    shown = [*METRICS, "GAP"] if has_gap else [*METRICS]
    rows = [["task", "queries", "gallery", *shown]]
    for one in scores:
        cells = _cells(one.means(), shown)
        place = shown.index(one.metric)
        cells[place] = f"**{cells[place]}**"
        size = f"{one.scored.sum():,}", f"{one.task.gallery_size:,}"
        rows.append([one.task.title, *size, *cells])
    if len(scores) > 1:
        for name in ("tasks", "domains", "queries"):
            rows.append([f"mean over {name}", "", "", *_cells(means[name], shown)])
    return rows


def domain_rows(scores: Sequence[TaskScores]) -> list[list[str]]:
    """A row for each domain of each task, heading first."""
    rows = [["task", "domain", "queries", *METRICS]]
    for one in scores:
        for domain, means in one.by(one.task.domains).iterrows():
            count = f"{means['queries']:,.0f}"
            rows.append([one.task.title, str(domain), count, *_cells(means, METRICS)])
    return rows


def _cells(values: Any, shown: Iterable[str]) -> list[str]:
    return [f"{values[name]:.4f}" if name in values else "" for name in shown]
