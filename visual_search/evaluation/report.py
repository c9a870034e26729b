"""The report of a development set: queries with their answers, as pictures."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visual_search.common.page import Section, Tile, TileRow, data_uri, write_page
from visual_search.common.processes import available_cores
from visual_search.data.dev_sets import DevSet
from visual_search.data.image_files import UnreadableImage
from visual_search.data.images import ImageItem, read_region
from visual_search.evaluation.dev_set import Evaluation

THUMBNAIL_PIXELS = 128
RESULTS_SHOWN = 10
OTHERS_SHOWN = 20
PROBLEMS_SHOWN = 200
FRAMES = (
    "Blue: the query, cut to its box. Green: an image of the right product. Dotted, at the end: an "
    "image that would have been right. Hover over an image for its file."
)


def write_report(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    dev_set: DevSet,
    evaluation: Evaluation,
    queries_shown: int = 100,
    sections: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the page of a development set: worst queries first, right results framed green.

    Behind the worst come a few of the others, spread evenly, to see what works.

    Args:
        path: the html file.
        title: its headline.
        facts: name and value of what else stands on top.
        dev_set: the images and their products.
        evaluation: the ranking of `dev_set` and its scores.
        queries_shown: how many of the worst queries; 0 shows all.
        sections: a title, and names and values under it, for what comes before the queries.
    """
    scores, problems = evaluation.average_precisions, evaluation.ranking.problems
    worst_first = np.argsort(scores, kind="stable")
    worst, sample = worst_and_others(worst_first, queries_shown or len(worst_first), OTHERS_SHOWN)
    counts, _ = np.histogram(scores, bins=10, range=(0.0, 1.0))
    listed = [["image", "reason"], *([p.path, p.reason] for p in problems[:PROBLEMS_SHOWN])]
    total = len(worst_first)
    headings = [f"AP {score:.3f}" for score in scores]

    def row(query: int) -> TileRow:
        return query_row(dev_set, query, evaluation.ranking.ranks[query], headings[query])

    worst_title = f"The {len(worst)} worst of {total} queries, worst first"
    parts = [
        Section(
            facts=facts,
            bars={f"{k / 10:.1f} to {(k + 1) / 10:.1f}": int(n) for k, n in enumerate(counts)},
            bars_title="queries by average precision, 0 to 1",
            folded={f"Damaged images and wrong boxes: {len(problems)}": listed} if problems else {},
        ),
        *(Section(heading, facts=values) for heading, values in (sections or {}).items()),
        Section(
            worst_title if sample else f"All {total} queries, worst first",
            [FRAMES],
            rows=[row(query) for query in worst],
        ),
        Section(
            f"{len(sample)} of the other {total - len(worst)}, spread evenly" if sample else "",
            rows=[row(query) for query in sample],
        ),
    ]
    write_page(path, title, parts, thumbnails)


def worst_and_others(
    worst_first: np.ndarray, worst: int, others: int
) -> tuple[list[int], list[int]]:
    """The first `worst` of some queries, and `others` spread evenly over the rest."""
    rest = worst_first[worst:]
    spread = rest[np.linspace(0, len(rest) - 1, min(len(rest), others)).astype(int)]
    return worst_first[:worst].tolist(), spread.tolist()


def query_row(
    dev_set: DevSet, query: int, ranks: np.ndarray, heading: str = "", shown: int = RESULTS_SHOWN
) -> TileRow:
    """A query, the first of its answers, and an image that would be right.

    Args:
        dev_set: the images and their products.
        query: a row of its queries.
        ranks: `(n,)`, gallery rows, best first; rows beyond the gallery are passed over.
        heading: such as the query's score.
        shown: how many answers.
    """
    product, asked = dev_set.query_products[query], dev_set.queries[query]
    ranks = ranks[ranks < len(dev_set.gallery)]
    is_right = dev_set.gallery_products[ranks] == product
    found = np.flatnonzero(is_right)

    def tile(index: int, kind: Any, words: str = "") -> Tile:
        item, label = dev_set.gallery[index], dev_set.gallery_products[index]
        return Tile(item, f"{words}{item.path.name}, product {label}", kind)

    return TileRow(
        heading,
        f"first right at {found[0] + 1}" if len(found) else "none found",
        [
            Tile(asked, f"{asked.path.name}, product {product}", "query"),
            *(
                tile(index, "right" if right else "")
                for index, right in zip(ranks[:shown].tolist(), is_right, strict=False)
            ),
            *(
                tile(index, "expected", "would be right: ")
                for index in dev_set.right_rows(query)[:1].tolist()
            ),
        ],
    )


def thumbnails(items: Collection[ImageItem]) -> dict[ImageItem, str]:
    """A JPEG data URI of each image, cut to its box; grey where one cannot be read."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return dict(zip(items, pool.map(_thumbnail, items), strict=True))


def _thumbnail(item: ImageItem) -> str:
    try:
        shown = read_region(item, THUMBNAIL_PIXELS)
        scale = THUMBNAIL_PIXELS / max(shown.size)
        width, height = (max(round(side * scale), 1) for side in shown.size)
        picture = shown.resize((width, height), Image.Resampling.BICUBIC)
    except UnreadableImage:
        picture = Image.new("RGB", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), (127, 127, 127))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=72)
    return data_uri(buffer.getvalue(), "jpeg")
