"""Retrieval tasks: what `config/evaluation/*.yml` says, and the kinds of task there are."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.common.page import Section, TileRow
from visual_search.config import DevSetConfig
from visual_search.config_reader import read_part
from visual_search.data.dev_sets import DevSet
from visual_search.data.factory import dev_files, dev_set_of
from visual_search.evaluation.dev_set import (
    EmbeddedDevSet,
    embed_dev_set,
    unmatched_sentence,
)
from visual_search.evaluation.metrics import (
    METRICS,
    Hits,
    global_average_precision,
    hits_of_ranks,
    per_query,
)
from visual_search.evaluation.report import FRAMES, query_row
from visual_search.evaluation.scores import TaskScores
from visual_search.ranking.rank import MAX_PREDICTIONS, nearest_rows
from visual_search.ranking.rerank import Step, apply_steps
from visual_search.ranking.search import top_k

QUERIES_SHOWN, ANSWERS_SHOWN = 20, 7
CLASSES_SHOWN, QUERIES_OF_A_CLASS = 12, 4


@dataclass(frozen=True)
class TextTaskConfig:
    """Texts and images that are right for each other.

    Args:
        pairs: table of pairs (parquet); with it the task is between texts and images.
        root: folder its paths are relative to; empty is the table's own.
        split: which of its rows take part; empty takes all.
        text_column: queries, as typed, or texts, cleaned.
        language: ISO 639-1: only queries in it take part; empty: all.
        direction: what asks for what.
    """

    pairs: str = ""
    root: str = ""
    split: str = "test"
    text_column: Literal["queries", "texts"] = "queries"
    language: str = ""
    direction: Literal["text-to-photo", "photo-to-text"] = "text-to-photo"


@dataclass(frozen=True)
class TaskConfig:
    """A retrieval task: whose images are asked for, among which, and how that is scored.

    Args:
        title: in tables and reports; empty is the file's name.
        domain: tasks of one domain are averaged together, such as products, food, art.
        query_domain: regular expression over the path of a query; what its group matches is the
            query's domain, such as ([a-z]+)_final/ for the categories of Stanford Online Products.
        dev_set: the images, in the challenge's layout or as a table.
        texts: instead, texts and images, for runs of visual_search.main_clip.
        rows: of a table: held-out ones, or all, for a data set that nothing here trains on.
        protocol: of a table: auto ranks queries against the gallery where evaluation_status says
            so, else each image against all others; leave-one-out does the latter in any case.
        select: regular expression over the paths of a table; only rows it is found in take part.
        distractors: queries with nothing to find stay, and count in GAP.
        metric: what the competition or the papers report; the headline of the task.
        prepare: what to do where the images are not there, for the message.
    """

    title: str = ""
    domain: str = "products"
    query_domain: str = ""
    dev_set: DevSetConfig = field(default_factory=DevSetConfig)
    texts: TextTaskConfig = field(default_factory=TextTaskConfig)
    rows: Literal["held-out", "all"] = "held-out"
    protocol: Literal["auto", "leave-one-out"] = "auto"
    select: str = ""
    distractors: bool = False
    metric: Literal[
        "mAP@1000", "mP@5", "R@1", "R@5", "R@10", "R@100", "MAP@R", "R-precision", "GAP"
    ] = "mAP@1000"
    prepare: str = ""

    @property
    def kind(self) -> str:
        """A key of :data:`TASK_KINDS`."""
        return "texts" if self.texts.pairs else "images"

    @property
    def tables(self) -> list[Path]:
        """The files that list its data."""
        return [Path(self.texts.pairs)] if self.texts.pairs else dev_files(self.dev_set)


@dataclass(frozen=True)
class Task(ABC):
    """A task with its queries and gallery. A new kind is a subclass in :data:`TASK_KINDS`."""

    name: str
    """Of its file."""
    config: TaskConfig
    query_names: Sequence[str]
    """Path or text of each query."""
    query_labels: np.ndarray
    """`(n_queries,)`: queries of one label are of one class."""
    domains: np.ndarray
    """`(n_queries,)`, text."""
    gallery_size: int
    """How many answers are ranked."""

    @property
    def title(self) -> str:
        """In tables and reports."""
        return self.config.title or self.name

    @property
    def note(self) -> str:
        """What has to be known beside its scores, in a sentence; mostly nothing."""
        return ""

    @property
    def leave_one_out(self) -> bool:
        """Whether each image asks for all others."""
        return False

    @property
    def legend(self) -> str:
        """What frames round the pictures of :meth:`rows` mean."""
        return FRAMES

    @staticmethod
    def refusal(run: Path) -> str | None:
        """Why a model cannot take part in a task of this kind; None where it can."""
        return None

    @classmethod
    @abstractmethod
    def load(cls, name: str, config: TaskConfig) -> Task:
        """Read what its tables list.

        Raises:
            UserError: for a table with a fault.
        """

    @abstractmethod
    def embed(self, run: Path, input_size: int, cache: Path) -> Any:
        """The task as a model sees it: embedded, or read from what was kept.

        Args:
            run: a run folder, a checkpoint, or an export's folder.
            input_size: pixels; 0 takes the model's own.
            cache: folder in which embeddings are kept.

        Raises:
            UserError: for a model that is missing or damaged.
        """

    @abstractmethod
    def score(self, model: Any, steps: Sequence[Step] = ()) -> TaskScores:
        """Every metric, of the ranking of what :meth:`embed` gave with these re-ranking steps."""

    def sections(self, scores: TaskScores, model: Any) -> list[Section]:
        """What a report shows of it: the worst classes, and the worst queries with pictures."""
        classes = scores.by(self.query_labels).sort_values("mAP@1000", kind="stable")
        table: list[list[object]] = [
            ["class", "queries", *METRICS],
            *(
                [name, f"{means['queries']:.0f}", *(f"{means[metric]:.3f}" for metric in METRICS)]
                for name, means in classes[:QUERIES_SHOWN].iterrows()
            ),
        ]
        worst = scores.values["mAP@1000"].dropna().sort_values(kind="stable")[:QUERIES_SHOWN]
        headings = [f"AP {value:.3f}" for value in worst]
        return [
            Section(
                f"{self.title}: the worst queries, the worst first",
                [self.legend],
                folded={"The worst classes": table},
                rows=self.rows(scores, model, worst.index.tolist(), headings),
            )
        ]

    @abstractmethod
    def rows(
        self, scores: TaskScores, model: Any, queries: Sequence[int], headings: Sequence[str]
    ) -> list[TileRow]:
        """Some queries, in this order, each with what the model answers."""


@dataclass(frozen=True)
class ImageTask(Task):
    """A task whose queries and gallery are images."""

    dev_set: DevSet

    @property
    def leave_one_out(self) -> bool:
        """Whether each image asks for all others."""
        return self.dev_set.own is not None

    @property
    def note(self) -> str:
        """How queries without a match count, where there are any."""
        if not self.config.distractors:
            return unmatched_sentence(self.dev_set)
        of = f"{self.dev_set.unmatched} of {len(self.dev_set.queries)} queries"
        return f"{of} are distractors, which count in GAP alone"

    @classmethod
    def load(cls, name: str, config: TaskConfig) -> ImageTask:
        """Read the images and their classes."""
        dev_set = dev_set_of(
            config.dev_set,
            all_rows=config.rows == "all",
            leave_one_out=config.protocol == "leave-one-out",
            select=config.select,
            unmatched=config.distractors,
        )
        return cls.of(name, config, dev_set)

    @classmethod
    def of(cls, name: str, config: TaskConfig, dev_set: DevSet) -> ImageTask:
        """The task of images that are at hand."""
        paths = [item.path for item in dev_set.queries]
        names, labels = [str(path) for path in paths], np.asarray(dev_set.query_products)
        domains = _domains(config, paths)
        return cls(name, config, names, labels, domains, len(dev_set.gallery), dev_set)

    def embed(self, run: Path, input_size: int, cache: Path) -> EmbeddedDevSet:
        """The development set as the model sees it."""
        return embed_dev_set(run, self.dev_set, input_size, cache)

    def score(self, model: EmbeddedDevSet, steps: Sequence[Step] = ()) -> TaskScores:
        """Every metric; GAP where there are distractors and the last step leaves cosines."""
        dev_set = self.dev_set
        queries, gallery, last = apply_steps(model.queries, model.gallery, steps)
        labels = dev_set.gallery_products, dev_set.query_products
        # MAP@R looks as deep as a query has relevant images.
        most = int(np.unique(labels[0], return_counts=True)[1].max(initial=0))
        width = MAX_PREDICTIONS if last else max(MAX_PREDICTIONS, most)
        ranks = nearest_rows(queries, gallery, last, dev_set.own, width=width)
        hits = hits_of_ranks(ranks, *labels, dev_set.own)
        with_gap = self.config.distractors and not last
        gap = self._gap(queries, gallery, hits) if with_gap else None
        values = per_query(hits)
        if not self.config.distractors:
            values = values.fillna(0)
        return TaskScores(self, values, gap, steps)

    def _gap(self, queries: Tensor, gallery: Tensor, hits: Hits) -> float:
        """GAP of the nearest image, with its cosine as confidence."""
        own = self.dev_set.own
        similarities, rows = top_k(queries, gallery, 1 if own is None else 2)
        confidence = similarities[:, 0]
        if own is not None and similarities.shape[1] > 1:
            is_own = rows[:, 0] == torch.from_numpy(own)
            confidence = torch.where(is_own, similarities[:, 1], confidence)
        right = np.zeros(len(queries), dtype=bool)
        right[hits.query[hits.rank == 1]] = True
        return global_average_precision(confidence.numpy(), right, hits.n_relevant > 0)

    def sections(self, scores: TaskScores, model: Any) -> list[Section]:
        """Pictures of the worst classes as well: some queries, each with its first answer."""
        classes = scores.by(self.query_labels).sort_values("mAP@1000", kind="stable")
        worst = classes[:CLASSES_SHOWN]
        asked = [
            np.flatnonzero((self.query_labels == name) & scores.scored)[:QUERIES_OF_A_CLASS]
            for name in worst.index
        ]
        everyone = np.concatenate(asked).tolist()
        shown = iter(self.rows(scores, model, everyone, [""] * len(everyone)))
        rows = []
        for (name, means), queries in zip(worst.iterrows(), asked, strict=True):
            tiles = [tile for _ in queries for tile in next(shown).tiles[:2]]
            note = f"{name}, {means['queries']:.0f} queries"
            rows.append(TileRow(f"mAP {means['mAP@1000']:.3f}", note, tiles))
        title = f"{self.title}: the worst classes, some queries with their first answers"
        return [*super().sections(scores, model), Section(title, rows=rows)]

    def rows(
        self, scores: TaskScores, model: Any, queries: Sequence[int], headings: Sequence[str]
    ) -> list[TileRow]:
        """Each query with the first images found, and one that would be right."""
        own = self.dev_set.own
        if scores.steps:  # some look at all queries at once
            ranks = nearest_rows(model.queries, model.gallery, scores.steps, own)[list(queries)]
        else:
            asked = model.queries[torch.tensor(queries, dtype=torch.long)]
            its_own = None if own is None else own[list(queries)]
            ranks = nearest_rows(asked, model.gallery, (), its_own)
        found = zip(queries, ranks, headings, strict=True)
        return [query_row(self.dev_set, *one, ANSWERS_SHOWN) for one in found]


def _domains(config: TaskConfig, paths: Sequence[Path]) -> np.ndarray:
    """Of each query what `query_domain` finds in its path, else the task's domain."""
    pattern = re.compile(config.query_domain)
    found = [pattern.search(path.as_posix()) if pattern.groups else None for path in paths]
    # The group need not have a part in what was found.
    return np.array([(match and match[1]) or config.domain for match in found], dtype=object)


TASK_KINDS: dict[str, type[Task]] = {"images": ImageTask}
"""Of :attr:`TaskConfig.kind`; visual_search.text.tasks adds its own where it is imported."""


def read_task(path: Path) -> TaskConfig:
    """A retrieval task from its file, such as `config/evaluation/sop.yml`.

    Raises:
        UserError: naming file and key, also for a regular expression that is none, and for GAP
            without distractors.
    """
    task = read_part(path, TaskConfig)
    for key in ("select", "query_domain"):
        try:
            pattern = re.compile(getattr(task, key))
        except re.error as error:
            raise UserError(f"{path}: {key} is not a regular expression: {error}") from error
        if key == "query_domain" and task.query_domain and not pattern.groups:
            raise UserError(f"{path}: query_domain needs a group: the domain stands in ( )")
    if task.metric == "GAP" and not task.distractors:
        raise UserError(f"{path}: metric GAP needs distractors: true")
    if task.texts.pairs:
        for key in ("distractors", "select", "query_domain"):
            if getattr(task, key):
                raise UserError(f"{path}: {key} is of images' tables; leave it out beside texts")
    return task


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
    absent = [path for path in task.tables if not path.is_file()]
    if not absent:
        return None
    advice = f"; prepare it: {task.prepare}" if task.prepare else ""
    return f"{absent[0]} is not there{advice}"
