"""Retrieval tasks between texts and photos, of a table of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from visual_search.hits import hits_among
from visual_search.metrics import MAX_PREDICTIONS
from visual_search.pair_table import PairTable, in_language, read_pairs
from visual_search.retrieval_metrics import per_query
from visual_search.search import top_k
from visual_search.task_config import TaskConfig
from visual_search.task_scores import TaskScores
from visual_search.text_retrieval import Relevance, relevance_of
from visual_search.typed_model import load_typed_model, photo_items
from visual_search.typed_queries import TypedSearch


@dataclass(frozen=True)
class TextTask:
    """A task whose queries are texts and whose gallery is photos, or the other way round."""

    name: str
    """Of its file."""
    config: TaskConfig
    table: PairTable
    relevance: Relevance

    @property
    def title(self) -> str:
        """In tables and reports."""
        return self.config.title or self.name

    @property
    def asks_with_texts(self) -> bool:
        """Whether texts are the queries."""
        return self.config.texts.direction == "text-to-photo"

    @property
    def right(self) -> list[np.ndarray]:
        """Of each query, the rows of the right answers, ascending, int64."""
        return self.relevance.photos_of if self.asks_with_texts else self.relevance.texts_of

    @property
    def query_names(self) -> list[str]:
        """The texts, or the photos' paths."""
        if self.asks_with_texts:
            return self.relevance.texts
        return [str(path) for path in self.table.paths]

    @property
    def query_labels(self) -> np.ndarray:
        """`(n_queries,)`, text: a text's own, a photo's product with its first text."""
        if self.asks_with_texts:
            return np.array(self.relevance.texts, dtype=object)
        said = [queries[0] for queries in self.table.queries]
        groups = self.table.groups.tolist()
        return np.array([f"{s} #{g}" for s, g in zip(said, groups, strict=True)], dtype=object)

    @property
    def domains(self) -> np.ndarray:
        """`(n_queries,)`, text."""
        return np.full(len(self.right), self.config.domain, dtype=object)

    @property
    def gallery_size(self) -> int:
        """How many answers there are."""
        return len(self.table) if self.asks_with_texts else len(self.relevance.texts)

    @property
    def leave_one_out(self) -> bool:
        """Never: a photo is no text."""
        return False


def load_text_task(name: str, config: TaskConfig) -> TextTask:
    """Read the photos and texts of a task.

    Raises:
        UserError: see :func:`visual_search.pair_table.read_pairs`.
    """
    given = config.texts
    root = Path(given.root) if given.root else None
    everything = read_pairs(Path(given.pairs), given.split or None, root)
    _, table = in_language(everything, given.language)
    return TextTask(name, config, table, relevance_of(table, given.text_column))


@dataclass(frozen=True)
class EmbeddedTextTask:
    """A task as a model sees it."""

    task: TextTask
    queries: Tensor
    """`(n_queries, d)`, unit vectors."""
    gallery: Tensor
    """`(gallery_size, d)`, the same."""

    def first(self, queries: Sequence[int], count: int) -> np.ndarray:
        """The first answers to some queries, `(queries, count)`, rows of the gallery."""
        found: np.ndarray = top_k(self.queries[list(queries)], self.gallery, count)[1].numpy()
        return found


def embed_text_task(run: Path, task: TextTask, input_size: int, cache: Path) -> EmbeddedTextTask:
    """Embed the photos, or read what was kept, and the texts.

    Args:
        run: of :mod:`visual_search.main_clip`.
        task: photos and texts.
        input_size: pixels; 0 takes the model's own.
        cache: where embeddings of photos are kept.

    Raises:
        UserError: when the model is missing, damaged, or knows no texts.
    """
    search = TypedSearch(load_typed_model(run, input_size), photo_items(task.table), cache)
    texts = search.model.encoder.embed_texts(task.relevance.texts)
    sides = (texts, search.vectors) if task.asks_with_texts else (search.vectors, texts)
    return EmbeddedTextTask(task, *sides)


def score_text_task(model: EmbeddedTextTask) -> TaskScores:
    """Every metric of a task, but GAP."""
    right = model.task.right
    depth = max(MAX_PREDICTIONS, max(len(rows) for rows in right))
    ranks = top_k(model.queries, model.gallery, depth)[1].numpy()
    return TaskScores(model.task, per_query(hits_among(ranks, right)), None, False)
