"""Retrieval tasks between texts and images, of a table of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from visual_search.data.contact_sheet import (
    LETTERS_IN_A_LINE,
    MOST_IN_A_ROW,
    Cell,
    write_contact_sheet,
)
from visual_search.evaluation.metrics import hits_among, per_query
from visual_search.evaluation.pictures import EXPECTED, QUERY, RIGHT, WRONG
from visual_search.evaluation.scores import TaskScores
from visual_search.evaluation.tasks import TASK_KINDS, Task, TaskConfig
from visual_search.model.checkpoint import knows_texts, load_checkpoint
from visual_search.ranking.rank import MAX_PREDICTIONS
from visual_search.ranking.rerank import Step
from visual_search.ranking.search import top_k
from visual_search.text.pairs import PairTable, in_language, read_pairs
from visual_search.text.retrieval import Relevance, relevance_of
from visual_search.text.search import TextSearch, load_text_model


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


@dataclass(frozen=True)
class TextTask(Task[EmbeddedTextTask]):
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
    def tables(config: TaskConfig) -> list[Path]:
        """The table of pairs."""
        return [Path(config.texts.pairs)]

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

    def embed(self, run: Path, input_size: int, cache: Path) -> EmbeddedTextTask:
        """Embed the texts, and the images where no embeddings of them were kept."""
        search = TextSearch(load_text_model(run, input_size), self.table.items(), cache)
        texts = search.model.encoder.embed_texts(self.relevance.texts)
        sides = (texts, search.vectors) if self.asks_with_texts else (search.vectors, texts)
        return EmbeddedTextTask(self, *sides)

    def score(self, model: EmbeddedTextTask, steps: Sequence[Step] = ()) -> TaskScores:
        """Every metric but GAP; steps of re-ranking are of images alone and do nothing here."""
        depth = max(MAX_PREDICTIONS, max(len(rows) for rows in self.relevant))
        ranks = top_k(model.queries, model.gallery, depth)[1].numpy()
        return TaskScores(self, per_query(hits_among(ranks, self.relevant)), None, False)

    def draw(
        self,
        file: Path,
        queries: Sequence[int],
        captions: Sequence[str],
        models: Sequence[EmbeddedTextTask],
        steps: Sequence[Step] = (),
    ) -> None:
        """A row for each query; with two models, the results of the first come first."""
        if queries:
            rows = _rows(queries, captions, models)
            write_contact_sheet(file, rows)


def _rows(
    queries: Sequence[int], captions: Sequence[str], models: Sequence[EmbeddedTextTask]
) -> list[list[Cell]]:
    """What each query is about, then each model's answers.

    These are images over their own texts, or the query's image over the text that it was given.
    """
    task = models[0].task
    images, own = task.table.paths, task.table.queries
    shown = (MOST_IN_A_ROW - 1) // len(models) if task.asks_with_texts else 1
    found = [model.first(queries, shown) for model in models]
    rows = []
    for place, (query, caption) in enumerate(zip(queries, captions, strict=True)):
        right = set(task.relevant[query].tolist())
        if task.asks_with_texts:
            asked, colour = images[int(task.relevant[query][0])], EXPECTED
            cells = [Cell(asked, f"{_short(task.query_names[query])}\n{caption}", colour)]
        else:
            cells = [Cell(images[query], f"{_short(own[query][0])}\n{caption}", QUERY)]
        for number, ranks in enumerate(found):
            letter = "AB"[number] if len(found) > 1 else ""
            for rank, row in enumerate(ranks[place].tolist(), 1):
                colour = RIGHT if row in right else WRONG
                if task.asks_with_texts:
                    said, image = own[row][0], images[row]
                else:
                    said, image = task.relevance.texts[row], images[query]
                cells.append(Cell(image, f"{letter}{rank}\n{_short(said)}", colour))
        rows.append(cells)
    return rows


def _short(text: str) -> str:
    """The beginning of a text that is too long for a line; sheets keep the end, as of paths."""
    return text if len(text) <= LETTERS_IN_A_LINE else text[: LETTERS_IN_A_LINE - 1] + "…"


TASK_KINDS["texts"] = TextTask
