"""Retrieval tasks between texts and images, of a table of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visual_search.common.page import Tile, TileRow
from visual_search.data.images import ImageItem
from visual_search.evaluation.dev_set import tell_problems
from visual_search.evaluation.metrics import hits_among, per_query
from visual_search.evaluation.scores import TaskScores
from visual_search.evaluation.tasks import ANSWERS_SHOWN, TASK_KINDS, Task, TaskConfig
from visual_search.model.checkpoint import knows_texts, load_checkpoint
from visual_search.ranking.rank import MAX_PREDICTIONS
from visual_search.ranking.rerank import Step
from visual_search.ranking.search import top_k
from visual_search.text.pairs import PairTable, in_language, read_pairs
from visual_search.text.retrieval import Relevance, relevance_of
from visual_search.text.search import TextSearch, load_text_model

TEXTS_SHOWN = 3
Sides = tuple[Tensor, Tensor]
"""A task as a model sees it: queries `(n_queries, d)` and gallery `(gallery_size, d)`, unit
vectors."""


@dataclass(frozen=True)
class TextTask(Task):
    """A task whose queries are texts and whose gallery is images, or the other way round."""

    table: PairTable
    relevance: Relevance

    @property
    def asks_with_texts(self) -> bool:
        """Whether texts are the queries."""
        return self.config.texts.direction == "text-to-photo"

    @property
    def relevant(self) -> list[np.ndarray]:
        """Of each query, the rows of the relevant answers, ascending, int64."""
        return self.relevance.images_of if self.asks_with_texts else self.relevance.texts_of

    @staticmethod
    def refusal(run: Path) -> str | None:
        """A model that was trained with images alone."""
        if knows_texts(load_checkpoint(run)):
            return None
        return f"{run} knows no texts: it takes a run of visual_search.main_clip"

    @classmethod
    def load(cls, name: str, config: TaskConfig) -> TextTask:
        """Read the images and texts (:func:`visual_search.text.pairs.read_pairs`)."""
        given = config.texts
        root = Path(given.root) if given.root else None
        everything = read_pairs(Path(given.pairs), given.split or None, root)
        _, table = in_language(everything, given.language)
        relevance = relevance_of(table, given.text_column)
        texts = relevance.texts
        if given.direction == "text-to-photo":
            names, labels, answers = texts, texts, len(table)
        else:
            names, answers = [str(path) for path in table.paths], len(texts)
            # An image's product with its first text.
            groups = zip(table.queries, table.groups.tolist(), strict=True)
            labels = [f"{queries[0]} #{group}" for queries, group in groups]
        domains = np.full(len(names), config.domain, dtype=object)
        of_queries = names, np.array(labels, dtype=object), domains
        return cls(name, config, *of_queries, answers, table, relevance)

    def embed(self, run: Path, input_size: int, cache: Path) -> Sides:
        """Embed the texts, and the images where no embeddings of them were kept."""
        search = TextSearch(load_text_model(run, input_size), self.table.items(), cache)
        tell_problems(search.problems)
        texts = search.model.encoder.embed_texts(self.relevance.texts)
        return (texts, search.vectors) if self.asks_with_texts else (search.vectors, texts)

    def score(self, model: Sides, steps: Sequence[Step] = ()) -> TaskScores:
        """Every metric but GAP; steps of re-ranking are of images alone and do nothing here."""
        depth = max(MAX_PREDICTIONS, max(len(rows) for rows in self.relevant))
        ranks = top_k(*model, depth)[1].numpy()
        return TaskScores(self, per_query(hits_among(ranks, self.relevant)), None)

    @property
    def legend(self) -> str:
        """What the frames mean."""
        if self.asks_with_texts:
            return (
                "Green: right; dotted, at the end: it would be. Hover over an image for its texts."
            )
        return "Below the score: the texts that the photo was given; a star stands at right ones."

    def rows(
        self, scores: TaskScores, model: Any, queries: Sequence[int], headings: Sequence[str]
    ) -> list[TileRow]:
        """Each text with the images found and one that would be right, or each photo with texts."""
        row, shown = self._row_of_photo, TEXTS_SHOWN
        if self.asks_with_texts:
            row, shown = self._row_of_text, ANSWERS_SHOWN
        asked, gallery = model
        found = top_k(asked[list(queries)], gallery, shown)[1].tolist()
        return [row(*one) for one in zip(queries, headings, found, strict=True)]

    def _row_of_text(self, query: int, heading: str, found: list[int]) -> TileRow:
        right = self.relevant[query].tolist()
        tiles = [tile(self.table, row, "right" if row in right else "") for row in found]
        would_be = tile(self.table, right[0], "expected")
        return TileRow(heading, self.query_names[query], [*tiles, would_be])

    def _row_of_photo(self, query: int, heading: str, found: list[int]) -> TileRow:
        right, texts = self.relevant[query], self.relevance.texts
        said = [f"{'* ' if row in right else ''}{texts[row]}" for row in found]
        return TileRow(heading, "; ".join(said), [tile(self.table, query, "query")])


def tile(table: PairTable, row: int, kind: Any) -> Tile:
    """An image of a table; its texts are shown while the pointer is over it."""
    return Tile(ImageItem(table.paths[row]), ", ".join(table.queries[row][:3]), kind)


TASK_KINDS["texts"] = TextTask
