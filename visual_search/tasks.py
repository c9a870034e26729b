"""Retrieval tasks: from their files to photos, queries and domains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visual_search.config_reader import read_task
from visual_search.dev_tables import read_dev_table
from visual_search.errors import UserError
from visual_search.evaluate import DevSet, read_dev_set
from visual_search.task_config import TaskConfig


@dataclass(frozen=True)
class Task:
    """A task with its photos."""

    name: str
    """Of its file."""
    config: TaskConfig
    dev_set: DevSet
    domains: np.ndarray
    """`(n_queries,)`, text."""

    @property
    def title(self) -> str:
        """In tables and reports."""
        return self.config.title or self.name

    @property
    def query_names(self) -> list[str]:
        """Paths of the queries."""
        return [str(item.path) for item in self.dev_set.queries]

    @property
    def query_labels(self) -> np.ndarray:
        """`(n_queries,)`, the class of each."""
        return np.asarray(self.dev_set.query_products)

    @property
    def gallery_size(self) -> int:
        """How many photos are ranked."""
        return len(self.dev_set.gallery)

    @property
    def leave_one_out(self) -> bool:
        """Whether each photo asks for all others."""
        return self.dev_set.own is not None


def read_tasks(files: Sequence[Path]) -> dict[str, TaskConfig]:
    """The tasks of some files, by name.

    Raises:
        UserError: naming file and key, and for two files of the same name.
    """
    tasks: dict[str, TaskConfig] = {}
    for file in files:
        if file.stem in tasks:
            raise UserError(f"{file}: another task is called {file.stem}; rename one of the files")
        tasks[file.stem] = read_task(file)
    return tasks


def what_is_missing(task: TaskConfig) -> str | None:
    """Why a task cannot be run yet, and what to do about it; None where its tables are there."""
    absent = [path for path in _tables(task) if not path.is_file()]
    if not absent:
        return None
    advice = f"; prepare it: {task.prepare}" if task.prepare else ""
    return f"{absent[0]} is not there{advice}"


def load_task(name: str, task: TaskConfig) -> Task:
    """Read the photos and their classes.

    Raises:
        UserError: see :func:`visual_search.evaluate.read_dev_set` and
            :func:`visual_search.dev_tables.read_dev_table`.
    """
    given = task.dev_set
    if given.table:
        dev_set = read_dev_table(
            Path(given.table),
            Path(given.root) if given.root else None,
            fold=given.fold,
            all_rows=task.rows == "all",
            leave_one_out=task.protocol == "leave-one-out",
            select=task.select,
            unmatched=task.distractors,
        )
    else:
        dev_set = read_dev_set(Path(given.eval_root), given.gallery, given.queries)
    return Task(name, task, dev_set, _domains(task, dev_set))


def _tables(task: TaskConfig) -> list[Path]:
    if task.texts.pairs:
        return [Path(task.texts.pairs)]
    given = task.dev_set
    if given.table:
        return [Path(given.table)]
    return [Path(given.eval_root) / name for name in (given.gallery, given.queries)]


def _domains(task: TaskConfig, dev_set: DevSet) -> np.ndarray:
    if not task.query_domain:
        return np.full(len(dev_set.queries), task.domain, dtype=object)
    pattern = re.compile(task.query_domain)
    found = [pattern.search(item.path.as_posix()) for item in dev_set.queries]
    return np.array([match[1] if match else task.domain for match in found], dtype=object)
