"""A page of queries and what was retrieved for them, in one file that opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from visual_search.cores import available_cores
from visual_search.evaluate import DevSet, Evaluation
from visual_search.files import write_text
from visual_search.images import ImageItem, UnreadableImage, read_photo

THUMBNAIL_PIXELS = 128
RESULTS_SHOWN = 10
OTHERS_SHOWN = 20
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Result:
    """One retrieved photo on the page."""

    picture: str
    right: bool
    title: str


@dataclass(frozen=True)
class Row:
    """One query on the page."""

    picture: str
    title: str
    average_precision: float
    first_right: int | None
    """Rank of the first right photo, from 1; None where none was found."""
    results: list[Result]
    expected: Result | None
    """A photo that would have been right; None where the gallery has none."""


def write_report(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    dev_set: DevSet,
    evaluation: Evaluation,
    queries_shown: int = 100,
    sections: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the report: worst queries first, right results framed green.

    Behind the worst come a few of the others, spread evenly, to see what works.

    Args:
        path: the html file.
        title: its headline.
        facts: name and value of what else stands on top.
        dev_set: the photos and their products.
        evaluation: the ranking of `dev_set` and its scores.
        queries_shown: how many of the worst queries; 0 shows all.
        sections: a title, and names and values under it, for what comes before the queries.
    """
    import jinja2

    worst_first = np.argsort(evaluation.average_precisions, kind="stable")
    others = worst_first[queries_shown:] if queries_shown else worst_first[:0]
    spread = others[np.linspace(0, len(others) - 1, min(len(others), OTHERS_SHOWN)).astype(int)]
    worst = [_row(int(q), dev_set, evaluation) for q in worst_first[: queries_shown or None]]
    sample = [_row(int(q), dev_set, evaluation) for q in spread]
    pictures = _thumbnails(dev_set, worst + sample)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True
    ).get_template(TEMPLATE.name)
    html = template.render(
        title=title,
        facts=facts,
        sections=sections or {},
        worst=worst,
        sample=sample,
        total=len(worst_first),
        pictures=pictures,
        histogram=_histogram(evaluation.average_precisions),
        problems=evaluation.ranking.problems,
        side=THUMBNAIL_PIXELS,
    )
    write_text(path, html)


def _row(query: int, dev_set: DevSet, evaluation: Evaluation) -> Row:
    product = dev_set.query_products[query]
    ranks = evaluation.ranking.ranks[query]
    ranks = ranks[ranks < len(dev_set.gallery)]
    right = dev_set.gallery_products[ranks] == product
    hits = np.flatnonzero(right)
    results = [
        _result(index, bool(right[place]), dev_set)
        for place, index in enumerate(ranks[:RESULTS_SHOWN].tolist())
    ]
    of_product = np.flatnonzero(dev_set.gallery_products == product)
    if dev_set.own is not None:
        of_product = of_product[of_product != dev_set.own[query]]
    return Row(
        f"q{query}",
        f"{dev_set.queries[query].path.name}, product {product}",
        float(evaluation.average_precisions[query]),
        int(hits[0]) + 1 if len(hits) else None,
        results,
        _result(int(of_product[0]), True, dev_set) if len(of_product) else None,
    )


def _result(index: int, right: bool, dev_set: DevSet) -> Result:
    product, path = dev_set.gallery_products[index], dev_set.gallery[index].path
    return Result(f"g{index}", right, f"{path.name}, product {product}")


def _thumbnails(dev_set: DevSet, rows: list[Row]) -> dict[str, str]:
    """A JPEG data URI for each picture on the page, each picture once."""
    results = [result for row in rows for result in (*row.results, row.expected) if result]
    names = sorted({row.picture for row in rows} | {result.picture for result in results})
    sides = {"q": dev_set.queries, "g": dev_set.gallery}
    with ThreadPoolExecutor(available_cores()) as pool:
        encoded = pool.map(lambda name: data_uri(sides[name[0]][int(name[1:])]), names)
        return dict(zip(names, encoded, strict=True))


def data_uri(item: ImageItem) -> str:
    try:
        photo = read_photo(item, THUMBNAIL_PIXELS)
        left, top, right, bottom = photo.region
        scale = THUMBNAIL_PIXELS / max(right - left, bottom - top)
        size = (max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1))
        picture = photo.image.resize(size, Image.Resampling.BICUBIC, box=photo.region)
    except UnreadableImage:
        picture = Image.new("RGB", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), (127, 127, 127))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _histogram(average_precisions: np.ndarray) -> list[tuple[str, int, float]]:
    """Label, count and height 0..1 of ten bars over average precision."""
    counts, edges = np.histogram(average_precisions, bins=10, range=(0.0, 1.0))
    top = max(int(counts.max()), 1)
    return [
        (f"{low:.1f} to {low + 0.1:.1f}", int(count), count / top)
        for low, count in zip(edges[:-1], counts, strict=True)
    ]
