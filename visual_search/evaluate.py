"""Rank a gallery for queries and score the ranking: one way for training, ranker and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visual_search.embed import embed_images
from visual_search.errors import UserError
from visual_search.images import ImageItem, ImageProblem
from visual_search.metrics import MAX_PREDICTIONS, average_precision, without_own
from visual_search.search import top_k
from visual_search.tables import check_boxes, image_items, read_gallery, read_queries


@dataclass(frozen=True)
class Ranking:
    """What a model answers to a set of queries."""

    ranks: np.ndarray
    """`(n_queries, 1000)`, int64 gallery rows, best first; see :func:`fill_to_width`."""
    problems: tuple[ImageProblem, ...]
    """Photos that were damaged or had a wrong box; each still has its row."""
    embedding_seconds: float
    ranking_seconds: float


def rank_gallery(
    model: Callable[[Tensor], Tensor],
    gallery: Sequence[ImageItem],
    queries: Sequence[ImageItem],
    input_size: int,
    *,
    device: torch.device,
    batch_size: int = 32,
    progress: bool = True,
    own: np.ndarray | None = None,
) -> Ranking:
    """Embed both sides and rank the gallery for each query by cosine similarity.

    Args:
        model: uint8 pixels `(N, 3, input_size, input_size)` to unit vectors.
        gallery: seller photos; the ranking names them by their position here.
        queries: user photos with their boxes.
        input_size: side of the model's input in pixels.
        device: where the model is.
        batch_size: photos a step of the model.
        progress: whether there are progress bars.
        own: `(n_queries,)`, where the queries are photos of the gallery, the row of each: it is
            embedded once and never ranked for itself.
    """
    started = time.perf_counter()
    listed = {"gallery photos": gallery}
    if own is None:
        listed["query photos"] = queries
    sides = [
        embed_images(
            model,
            items,
            input_size,
            device=device,
            batch_size=batch_size,
            label=label,
            progress=progress,
        )
        for label, items in listed.items()
    ]
    embedded = time.perf_counter()
    rows = sides[0].matrix
    if own is None:
        _, indexes = top_k(sides[1].matrix, rows, MAX_PREDICTIONS)
        nearest = indexes.numpy()
    else:
        _, indexes = top_k(rows[torch.from_numpy(own)], rows, MAX_PREDICTIONS + 1)
        nearest = without_own(indexes.numpy(), own)
    ranks = fill_to_width(nearest, len(gallery))
    ranked = time.perf_counter()
    problems = tuple(problem for side in sides for problem in side.problems)
    return Ranking(ranks, problems, embedded - started, ranked - embedded)


def fill_to_width(ranks: np.ndarray, n_gallery: int, width: int = MAX_PREDICTIONS) -> np.ndarray:
    """Widen the ranking of a small gallery to the `width` columns that the evaluator insists on.

    The rule: behind the whole gallery come the indexes `n_gallery, n_gallery + 1, …`. They name
    no photo, so they are never relevant, and no row repeats an index.
    """
    filler = np.arange(n_gallery, n_gallery + width - ranks.shape[1], dtype=ranks.dtype)
    return np.concatenate([ranks, np.broadcast_to(filler, (len(ranks), len(filler)))], axis=1)


@dataclass(frozen=True)
class DevSet:
    """A development set: photos on both sides, and the product that each shows."""

    gallery: list[ImageItem]
    queries: list[ImageItem]
    gallery_products: np.ndarray
    query_products: np.ndarray
    own: np.ndarray | None = None
    """`(n_queries,)`, int64: where the queries are photos of the gallery (leave-one-out), the row
    of each, which is never ranked for itself; None where they are others."""


def read_dev_set(root: Path, gallery: str = "gallery.csv", queries: str = "queries.csv") -> DevSet:
    """Read a development set in the challenge's layout, with its products.

    Raises:
        UserError: naming file, column and line: a missing file or column, an empty table, a box
            that is not four whole numbers or has no area, no query with a photo in the gallery.
    """
    if not root.is_dir():
        raise UserError(
            f"the data folder {root} does not exist; it should hold {gallery}, {queries} and the "
            "photos they name"
        )
    tables = {gallery: read_gallery(root / gallery), queries: read_queries(root / queries)}
    for name, table in tables.items():
        if "product_id" not in table.columns:
            raise UserError(f"{root / name} has no column 'product_id': mAP needs it")
    check_boxes(tables[queries], root / queries)
    products = [table["product_id"].to_numpy(dtype=str) for table in tables.values()]
    if not np.isin(products[1], products[0]).any():
        raise UserError(f"no query of {root / queries} shows a product of {root / gallery}")
    return DevSet(image_items(tables[gallery], root), image_items(tables[queries], root), *products)


@dataclass(frozen=True)
class Evaluation:
    """A ranking and its score on a development set."""

    ranking: Ranking
    average_precisions: np.ndarray
    """`(n_queries,)`, 0..1."""

    @property
    def mean_average_precision(self) -> float:
        """The challenge's score, 0..1."""
        return float(self.average_precisions.mean())


def evaluate_on_dev_set(
    model: Callable[[Tensor], Tensor],
    dev_set: DevSet,
    input_size: int,
    *,
    device: torch.device,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Rank a development set as the submission would, and score it."""
    ranking = rank_gallery(
        model,
        dev_set.gallery,
        dev_set.queries,
        input_size,
        device=device,
        batch_size=batch_size,
        progress=progress,
        own=dev_set.own,
    )
    scores = average_precision(
        ranking.ranks, dev_set.gallery_products, dev_set.query_products, dev_set.own
    )
    return Evaluation(ranking, scores)
