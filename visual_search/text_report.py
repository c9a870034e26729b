"""A page of typed queries and the photos that were found for them, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visual_search.cores import available_cores
from visual_search.files import write_text
from visual_search.images import ImageItem
from visual_search.pair_table import PairTable
from visual_search.report import data_uri
from visual_search.text_retrieval import BothWays, Relevance

TEMPLATE = Path(__file__).with_name("text_report.html")
RESULTS_SHOWN = 8
WORST_SHOWN, OTHERS_SHOWN = 30, 30


@dataclass(frozen=True)
class Found:
    """One photo on the page."""

    photo: int
    right: bool
    title: str


@dataclass(frozen=True)
class Row:
    """One query on the page."""

    text: str
    first_right: int | None
    """From 1; None where no photo was right."""
    results: list[Found]


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
        table: the photos that were ranked.
        relevance: their texts and the right answers.
        evaluation: of both directions.
    """
    import jinja2

    scores = evaluation.text_to_photo
    worst_first = np.argsort(scores.average_precisions, kind="stable")
    others = worst_first[WORST_SHOWN:]
    spread = others[np.linspace(0, len(others) - 1, min(len(others), OTHERS_SHOWN)).astype(int)]
    parts = {
        "Spread over all queries": [_row(q, table, relevance, evaluation) for q in spread.tolist()],
        "The worst queries": [
            _row(q, table, relevance, evaluation) for q in worst_first[:WORST_SHOWN].tolist()
        ],
    }
    shown = sorted({r.photo for rows in parts.values() for row in rows for r in row.results})
    with ThreadPoolExecutor(available_cores()) as pool:
        encoded = pool.map(lambda photo: data_uri(ImageItem(table.paths[photo])), shown)
        pictures = dict(zip(shown, encoded, strict=True))
    directions = {
        direction.replace("_to_", " → "): found.as_dict()
        for direction, found in evaluation.directions().items()
    }
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True
    ).get_template(TEMPLATE.name)
    html = template.render(
        title=f"{name}: typed queries",
        facts=facts,
        columns=list(next(iter(directions.values()))),
        directions=directions,
        parts=parts,
        pictures=pictures,
    )
    write_text(path, html)


def _row(query: int, table: PairTable, relevance: Relevance, evaluation: BothWays) -> Row:
    ranks, right = evaluation.photo_ranks[query], set(relevance.photos_of[query].tolist())
    first = int(evaluation.text_to_photo.first_right[query])
    return Row(
        relevance.texts[query],
        first + 1 if first < len(ranks) else None,
        [
            Found(photo, photo in right, ", ".join(table.queries[photo][:3]))
            for photo in ranks[:RESULTS_SHOWN].tolist()
        ],
    )
