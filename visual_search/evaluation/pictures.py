"""Queries and classes of a task as pictures: what was asked for, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from visual_search.data.contact_sheet import MOST_IN_A_ROW, Cell, write_contact_sheet
from visual_search.data.dev_sets import DevSet
from visual_search.evaluation.dev_set import EmbeddedDevSet
from visual_search.evaluation.scores import TaskScores
from visual_search.ranking.rank import nearest_rows
from visual_search.ranking.rerank import Step

QUERIES_SHOWN, CLASSES_SHOWN, QUERIES_OF_A_CLASS = 20, 12, 4
QUERY, RIGHT, WRONG, EXPECTED = "royalblue", "green", "firebrick", "orange"


def worst_queries(scores: TaskScores) -> list[int]:
    """Some of the queries with the lowest score, the worst first."""
    values = np.where(scores.scored, scores.values["mAP@1000"], np.inf)
    order = np.argsort(values, kind="stable")[:QUERIES_SHOWN]
    return [int(query) for query in order if scores.scored[query]]


def draw_queries(
    file: Path,
    queries: Sequence[int],
    captions: Sequence[str],
    models: Sequence[EmbeddedDevSet],
    steps: Sequence[Step] = (),
) -> None:
    """A row for each query: itself, the first of what each model found, and what is right.

    Args:
        file: ends in .jpg.
        queries: to show, in this order.
        captions: of each, below its product.
        models: on the same images; with two, the results of the first come first.
        steps: of re-ranking.
    """
    if not queries:
        return
    dev_set = models[0].dev_set
    shown = (MOST_IN_A_ROW - 2) // len(models)
    found = [_found(model, queries, shown, steps) for model in models]
    rows = []
    for place, (query, caption) in enumerate(zip(queries, captions, strict=True)):
        item = dev_set.queries[query]
        words = f"{dev_set.query_products[query]}\n{caption}"
        cells = [Cell(item.path, words, QUERY, item.box)]
        for number, ranks in enumerate(found):
            letter = "AB"[number] if len(found) > 1 else ""
            cells += [
                _result(dev_set, query, int(row), f"{letter}{rank}")
                for rank, row in enumerate(ranks[place], 1)
            ]
        cells += [
            Cell(dev_set.gallery[row].path, "would be right", EXPECTED, dev_set.gallery[row].box)
            for row in dev_set.right_rows(query)[:1].tolist()
        ]
        rows.append(cells)
    write_contact_sheet(file, rows)


def draw_classes(
    file: Path, scores: TaskScores, model: EmbeddedDevSet, steps: Sequence[Step] = ()
) -> None:
    """A row for each of the worst classes: some of its queries, each with its first result."""
    names, sizes, means = scores.classes()
    labels = scores.task.query_labels
    worst = np.argsort(means["mAP@1000"], kind="stable")[:CLASSES_SHOWN]
    picked = {
        int(k): np.flatnonzero((labels == names[k]) & scores.scored)[:QUERIES_OF_A_CLASS]
        for k in worst
    }
    everyone = [int(query) for queries in picked.values() for query in queries]
    first = dict(zip(everyone, _found(model, everyone, 1, steps), strict=True))
    rows = []
    for k, queries in picked.items():
        cells = []
        for query in queries.tolist():
            item = model.dev_set.queries[query]
            caption = f"{names[k]}\nmAP {means['mAP@1000'][k]:.3f}, {sizes[k]} queries"
            cells.append(Cell(item.path, caption, QUERY, item.box))
            cells.append(_result(model.dev_set, query, int(first[query][0]), "1"))
        rows.append(cells)
    write_contact_sheet(file, rows)


def _found(
    model: EmbeddedDevSet, queries: Sequence[int], shown: int, steps: Sequence[Step]
) -> np.ndarray:
    """The first results of some queries, `(queries, shown)`, gallery rows.

    Steps that look at all queries at once see all of them.
    """
    own = model.dev_set.own
    if steps:
        return nearest_rows(model.queries, model.gallery, steps, own)[list(queries), :shown]
    asked = model.queries[torch.tensor(list(queries), dtype=torch.long)]
    its_own = None if own is None else own[list(queries)]
    return nearest_rows(asked, model.gallery, (), its_own)[:, :shown]


def _result(dev_set: DevSet, query: int, row: int, rank: str) -> Cell:
    label, item = str(dev_set.gallery_products[row]), dev_set.gallery[row]
    right = label == str(dev_set.query_products[query])
    return Cell(item.path, f"{rank}\n{label}", RIGHT if right else WRONG, item.box)
