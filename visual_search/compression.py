"""How much quality a smaller embedding keeps: fewer dimensions, fewer bits, each measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visual_search.codes import CODES, Rescored, encode, search_codes
from visual_search.errors import UserError
from visual_search.evaluate import DevSet, evaluate_embeddings
from visual_search.files import write_json, write_text, written_atomically
from visual_search.projections import Sample, pca
from visual_search.rerank import Search

RESCORED = "binary, rescored by int8"
CODINGS = ("float32", *CODES, RESCORED)
CANDIDATES = 50
"""Of each query, that are ordered anew unless told otherwise: few beside a gallery's size."""


@dataclass(frozen=True)
class Sides:
    """Embeddings of one model: of the training photos, and of both sides of a development set."""

    training: Tensor
    """`(n, dimension)`, unit vectors: what projections and scales are fitted to."""
    gallery: Tensor
    queries: Tensor

    @property
    def dimension(self) -> int:
        """Width of the embeddings."""
        return self.training.shape[1]

    def prefix(self, dimension: int) -> Sides:
        """The first dimensions alone."""
        return Sides(*(F.normalize(side[:, :dimension], dim=1) for side in self._all()))

    def reduced(self, dimension: int) -> Sides:
        """Principal components of the training photos' embeddings."""
        labels = torch.zeros(len(self.training), dtype=torch.int64)
        made = pca(Sample(self.training, labels), dimension)
        parts = (side @ made.weight.T + made.bias for side in self._all())
        return Sides(*(F.normalize(side, dim=1) for side in parts))

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.training, self.gallery, self.queries


@dataclass(frozen=True)
class Point:
    """One way to store an embedding, and what it scores."""

    series: str
    dimension: int
    coding: str
    bytes_searched: float
    """Of a gallery photo, in memory while it is searched."""
    bytes_stored: float
    """The same with what is read for the candidates alone."""
    average_precisions: np.ndarray
    """`(n_queries,)`, 0..1."""

    @property
    def score(self) -> float:
        """mAP, 0..1."""
        return float(self.average_precisions.mean())


def points_of(
    series: str,
    sides: Sides,
    dimensions: Sequence[int],
    nested: bool,
    dev_set: DevSet,
    candidates: int = CANDIDATES,
) -> Iterator[Point]:
    """Every dimension in every coding.

    Args:
        series: what the points are called.
        sides: the embeddings at their full width.
        dimensions: to be measured; above the full width they are left out.
        nested: cut prefixes, as the model was trained for; otherwise principal components.
        dev_set: what is ranked.
        candidates: of each query, that binary codes find and int8 codes order anew.
    """
    for dimension in dimensions:
        if dimension > sides.dimension:
            continue
        small = sides
        if dimension < sides.dimension:
            small = sides.prefix(dimension) if nested else sides.reduced(dimension)
        for coding in CODINGS:
            search, searched, stored = _search(coding, small, candidates)
            found = evaluate_embeddings(dev_set, small.gallery, small.queries, search=search)
            yield Point(series, dimension, coding, searched, stored, found.average_precisions)


def _search(coding: str, sides: Sides, candidates: int) -> tuple[Search | None, float, float]:
    """How the coded gallery is searched, and bytes of a photo: searched, and stored in all."""
    if coding == "float32":
        return None, 4.0 * sides.dimension, 4.0 * sides.dimension
    if coding == RESCORED:
        short, long = (encode(kind, sides.gallery, sides.training) for kind in ("binary", "int8"))
        both = short.bytes_per_row + long.bytes_per_row
        return Rescored(short, long, candidates), short.bytes_per_row, both
    codes = encode(coding, sides.gallery, sides.training)
    return search_codes(codes), codes.bytes_per_row, codes.bytes_per_row


def check_dimensions(dimensions: Sequence[int]) -> None:
    """Refuse what is no width.

    Raises:
        UserError: naming the option.
    """
    if not dimensions or min(dimensions) < 1:
        raise UserError("--dimensions must be whole numbers of 1 or more")


def write_points(points: Sequence[Point], folder: Path, title: str) -> Path:
    """Write `compression.json`, `compression.md` and `compression.png`; returns the picture."""
    rows: list[dict[str, Any]] = []
    for point in points:
        values = asdict(point)
        del values["average_precisions"]
        rows.append({**values, "mAP": round(point.score, 6)})
    write_json(folder / "compression.json", {"title": title, "points": rows})
    write_text(folder / "compression.md", markdown(points))
    return _plot(points, folder / "compression.png", title)


def markdown(points: Sequence[Point]) -> str:
    """A table of all points."""
    lines = [
        "| embedding | dimensions | stored as | bytes searched | bytes stored | mAP |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for p in points:
        lines.append(
            f"| {p.series} | {p.dimension} | {p.coding} | {p.bytes_searched:.0f} "
            f"| {p.bytes_stored:.0f} | {p.score:.4f} |"
        )
    return "\n".join(lines) + "\n"


def _plot(points: Sequence[Point], path: Path, title: str) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    styles = dict(zip(CODINGS, ("-o", "--s", "-^", ":v", "-.D"), strict=True))
    names = list(dict.fromkeys(point.series for point in points))
    for number, series in enumerate(names):
        for coding in CODINGS:
            line = [p for p in points if (p.series, p.coding) == (series, coding)]
            if line:
                axes.plot(
                    [p.bytes_searched for p in line],
                    [p.score for p in line],
                    styles[coding],
                    color=f"C{number}",
                    label=f"{series}, {coding}",
                    markersize=4,
                    linewidth=1,
                )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="bytes of a gallery photo while it is searched", ylabel="mAP", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    with written_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
