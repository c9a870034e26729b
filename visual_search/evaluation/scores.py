"""Scores of a model on retrieval tasks: of each query, class, domain and task, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from visual_search.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from visual_search.evaluation.tasks import Task


@dataclass(frozen=True)
class TaskScores:
    """What a model reached on one task."""

    task: Task[Any]
    values: Mapping[str, np.ndarray]
    """Of each metric, `(n_queries,)`, 0..1; NaN for a query with nothing to find."""
    gap: float | None
    """GAP, 0..1, where the task has distractors and answers have a confidence."""
    reranked: bool

    @property
    def scored(self) -> np.ndarray:
        """`(n_queries,)`, bool: which queries have something to find."""
        return ~np.isnan(self.values["mAP@1000"])

    def means(self, chosen: np.ndarray | None = None) -> dict[str, float]:
        """Mean of each metric over the queries that have something to find.

        Args:
            chosen: `(n_queries,)`, bool: only these.
        """
        kept = self.scored if chosen is None else self.scored & chosen
        return {name: float(values[kept].mean()) for name, values in self.values.items()}

    def all_means(self) -> dict[str, float]:
        """:meth:`means`, and GAP where there is one."""
        return self.means() | ({} if self.gap is None else {"GAP": self.gap})

    @property
    def metric(self) -> str:
        """The metric that the task's competition uses; mAP@1000 where re-ranking left no GAP."""
        wanted = self.task.config.metric
        return wanted if wanted in self.all_means() else "mAP@1000"

    @property
    def headline(self) -> float:
        """The score by :attr:`metric`."""
        return self.all_means()[self.metric]

    def domains(self) -> dict[str, dict[str, float]]:
        """Means of each domain that has a query to score."""
        names = sorted(set(self.task.domains[self.scored]))
        return {name: self.means(self.task.domains == name) for name in names}

    def classes(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Names of the classes asked for, queries of each, and means of each metric."""
        kept = self.scored
        labels = self.task.query_labels[kept]
        names, codes = np.unique(labels, return_inverse=True)
        sizes = np.bincount(codes)
        means = {
            name: np.bincount(codes, weights=values[kept]) / sizes
            for name, values in self.values.items()
        }
        return names, sizes, means

    def as_json(self) -> dict[str, Any]:
        """What results.json has of the task; over classes, rare ones count as much as common."""
        of_classes = self.classes()[2].items()
        return {
            "title": self.task.title,
            "metric": self.metric,
            "score": self.headline,
            "queries": int(self.scored.sum()),
            "distractor_queries": int((~self.scored).sum()),
            "gallery": self.task.gallery_size,
            "leave_one_out": self.task.leave_one_out,
            "reranked": self.reranked,
            "mean_over_queries": self.all_means(),
            "mean_over_classes": {name: float(means.mean()) for name, means in of_classes},
            "domains": self.domains(),
        }


def over_tasks(scores: Sequence[TaskScores]) -> dict[str, dict[str, float]]:
    """The means that competitions use, over several tasks.

    Returns:
        `tasks`: each task counts alike; `queries`: each query does (the universal embedding
        challenge); `domains`: each domain does, a domain being the mean of its queries. And
        `competition`: `score`, the mean of the tasks' own metrics.
    """
    pooled = {
        name: np.concatenate([one.values[name][one.scored] for one in scores]) for name in METRICS
    }
    domains = np.concatenate([one.task.domains[one.scored] for one in scores])
    of_domain = [
        {name: values[domains == domain].mean() for name, values in pooled.items()}
        for domain in sorted(set(domains))
    ]
    of_task = [one.means() for one in scores]
    return {
        "tasks": {name: float(np.mean([m[name] for m in of_task])) for name in METRICS},
        "queries": {name: float(values.mean()) for name, values in pooled.items()},
        "domains": {name: float(np.mean([m[name] for m in of_domain])) for name in METRICS},
        "competition": {"score": float(np.mean([one.headline for one in scores]))},
    }
