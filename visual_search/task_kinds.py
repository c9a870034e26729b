"""What a task's kind changes: how it is embedded, scored and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from visual_search.embedded_dev_set import EmbeddedDevSet, embed_dev_set
from visual_search.rerank import Step
from visual_search.task_config import TaskConfig
from visual_search.task_pictures import worst_queries, write_classes, write_queries
from visual_search.task_scores import TaskScores, score_task
from visual_search.tasks import Task, load_task
from visual_search.text_task_pictures import write_text_queries
from visual_search.text_tasks import (
    EmbeddedTextTask,
    TextTask,
    embed_text_task,
    load_text_task,
    score_text_task,
)

RankedTask = Task | TextTask
EmbeddedTask = EmbeddedDevSet | EmbeddedTextTask


def load(name: str, config: TaskConfig) -> RankedTask:
    """Read a task's photos, with their classes or texts.

    Raises:
        UserError: see the loaders.
    """
    return load_text_task(name, config) if config.texts.pairs else load_task(name, config)


def embed(run: Path, task: RankedTask, input_size: int, cache: Path) -> EmbeddedTask:
    """The task as a run's model sees it.

    Raises:
        UserError: see the functions of each kind.
    """
    if isinstance(task, TextTask):
        return embed_text_task(run, task, input_size, cache)
    return embed_dev_set(run, task.dev_set, input_size, cache)


def score(task: RankedTask, model: EmbeddedTask, steps: Sequence[Step] = ()) -> TaskScores:
    """Every metric; steps of re-ranking are of photos alone."""
    if isinstance(task, TextTask):
        return score_text_task(cast(EmbeddedTextTask, model))
    return score_task(task, cast(EmbeddedDevSet, model), steps)


def draw_worst(
    folder: Path, scores: TaskScores, model: EmbeddedTask, steps: Sequence[Step]
) -> None:
    """The worst queries and, of photos, the worst classes: `<task>_queries.jpg`, `_classes.jpg`."""
    name, values = scores.task.name, scores.values["mAP@1000"]
    labels, queries = scores.task.query_labels, worst_queries(scores)
    if isinstance(model, EmbeddedTextTask):
        captions = [f"AP {values[query]:.3f}" for query in queries]
        write_text_queries(folder / f"{name}_queries.jpg", queries, captions, [model])
        return
    captions = [f"{labels[query]}\nAP {values[query]:.3f}" for query in queries]
    write_queries(folder / f"{name}_queries.jpg", queries, captions, [model], steps)
    write_classes(folder / f"{name}_classes.jpg", scores, model, steps)


def draw_changed(
    file: Path, queries: Sequence[int], captions: Sequence[str], models: Sequence[EmbeddedTask]
) -> None:
    """Queries as two models answer them."""
    if isinstance(models[0], EmbeddedTextTask):
        write_text_queries(file, queries, captions, cast(Sequence[EmbeddedTextTask], models))
    else:
        write_queries(file, queries, captions, cast(Sequence[EmbeddedDevSet], models))
