"""A page of text queries and the images that were found for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from visual_search.images import ImageItem
from visual_search.page import Section, Tile, TileRow, write_page
from visual_search.pair_table import PairTable
from visual_search.report import thumbnails, worst_and_others
from visual_search.text_retrieval import BothWays, Relevance

RESULTS_SHOWN = 8
WORST_SHOWN, OTHERS_SHOWN = 30, 30


def write_text_report(
    path: Path,
    name: str,
    facts: Mapping[str, str],
    table: PairTable,
    relevance: Relevance,
    evaluation: BothWays,
) -> None:
    """Write the page: scores both ways, the worst queries, and others spread over the rest.

    Args:
        path: the html file.
        name: of the run.
        facts: name and value of what else stands on top.
        table: the images that were ranked.
        relevance: their texts and the right answers.
        evaluation: of both directions.
    """
    worst_first = np.argsort(evaluation.text_to_photo.average_precisions, kind="stable")
    worst, others = worst_and_others(worst_first, WORST_SHOWN, OTHERS_SHOWN)
    directions = {
        direction.replace("_to_", " → "): found.as_dict()
        for direction, found in evaluation.directions().items()
    }
    columns = list(next(iter(directions.values())))
    scores = [
        ["", *columns],
        *([way, *(f"{one[k]:.3f}" for k in columns)] for way, one in directions.items()),
    ]
    note = "Green: an image of a product of that name. Hover over an image for what it is called."
    sections = [Section(facts=facts, tables={"": scores})]
    for title, queries in (("Spread over all queries", others), ("The worst queries", worst)):
        if queries:
            rows = [_row(query, table, relevance, evaluation) for query in queries]
            sections.append(Section(title, [note], rows=rows))
    shown = {tile.picture for part in sections for row in part.rows for tile in row.tiles}
    items = {key: ImageItem(table.paths[int(key[1:])]) for key in sorted(shown)}
    write_page(path, f"{name}: typed queries", sections, thumbnails(items))


def _row(query: int, table: PairTable, relevance: Relevance, evaluation: BothWays) -> TileRow:
    ranks, right = evaluation.photo_ranks[query], set(relevance.photos_of[query].tolist())
    first = int(evaluation.text_to_photo.first_right[query])
    return TileRow(
        relevance.texts[query],
        f"first right image: {first + 1 if first < len(ranks) else 'none'}",
        [
            Tile(f"g{row}", ", ".join(table.queries[row][:3]), "right" if row in right else "")
            for row in ranks[:RESULTS_SHOWN].tolist()
        ],
    )
