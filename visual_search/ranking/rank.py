"""Rank a gallery for queries: one way for training, ranker and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visual_search.common.model_config import EmbedSettings
from visual_search.data.images import ImageItem, ImageProblem
from visual_search.ranking.deadline import Deadline, call_within
from visual_search.ranking.embed import embed_images
from visual_search.ranking.inference_plan import LoadRuntime, plan_inference
from visual_search.ranking.rerank import Step, describe_steps, rank

MAX_PREDICTIONS = 1000
"""Columns of a submission: the 1,000 most similar gallery images of each query."""
# Of a time limit, for making and checking the plan of how to embed.
PLAN_SHARE = 0.02
UNUSED = ("a grey image is used", "0 is used")
"""How the reason ends where nothing of an image could be used."""
MAX_UNREADABLE = 0.2
"""Share of images of which nothing could be used, above which a score says nothing."""


@dataclass(frozen=True)
class Ranking:
    """What a model answers to a set of queries."""

    ranks: np.ndarray
    """`(n_queries, 1000)`, int64 gallery rows, best first; see :func:`fill_to_width`."""
    problems: tuple[ImageProblem, ...]
    """Images that were damaged or had a wrong box; each still has its row."""
    log: dict[str, Any] = field(default_factory=dict)
    """What was chosen to embed by, where the time went, and what the deadline gave up."""


def rank_gallery(
    model: Callable[[Tensor], Tensor],
    gallery: Sequence[ImageItem],
    queries: Sequence[ImageItem],
    input_size: int,
    *,
    device: torch.device,
    settings: EmbedSettings | None = None,
    steps: Sequence[Step] = (),
    deadline: Deadline | None = None,
    runtime: LoadRuntime | None = None,
    progress: bool = True,
    own: np.ndarray | None = None,
) -> Ranking:
    """Embed both sides and rank the gallery for each query by cosine similarity.

    Args:
        model: uint8 pixels `(N, 3, input_size, input_size)` to unit vectors.
        gallery: the seller's images; the ranking names them by their position here.
        queries: the users' photos with their boxes.
        input_size: side of the model's input in pixels.
        device: where the model is.
        settings: of the embedding; `trim_borders` is for the gallery.
        deadline: of a time limit that has to be kept.
        steps: of re-ranking; none is plain cosine ranking.
        runtime: the same model in ONNX Runtime: see :func:`plan_inference`.
        progress: whether there are progress bars.
        own: `(n_queries,)`, where the queries are images of the gallery, the row of each: it is
            embedded once and never ranked for itself.
    """
    started = time.perf_counter()
    settings = settings or EmbedSettings()
    deadline = deadline or Deadline()
    gallery = trimmed(gallery, settings)
    listed = {"gallery images": gallery}
    if own is None:
        listed["query images"] = queries
    plan = plan_inference(
        model,
        gallery,
        input_size,
        device=device,
        settings=settings,
        runtime=runtime,
        seconds=PLAN_SHARE * deadline.limit,
    )
    described = describe_steps(steps)
    images = sum(len(items) for items in listed.values())
    steps_named = [step["name"] for step in described]
    deadline.begin(images, input_size, settings.copies, steps_named, settings.sides(input_size))
    sides = [
        embed_images(
            plan,
            items,
            input_size,
            device=device,
            settings=settings,
            deadline=deadline,
            label=label,
            progress=progress,
        )
        for label, items in listed.items()
    ]
    # A side for which there was no time at all has zero vectors of any width.
    width = max(side.matrix.shape[1] for side in sides)
    matrices = [
        side.matrix if side.matrix.shape[1] == width else torch.zeros(len(side.matrix), width)
        for side in sides
    ]
    embedded = time.perf_counter()
    rows = matrices[0]
    asked = matrices[1] if own is None else rows[torch.from_numpy(own)]
    found = _ranked_in_time(asked, rows, steps, own, deadline)
    ranking = time.perf_counter() - embedded
    reranked = bool(steps) and deadline.reranks
    problems = tuple(problem for side in sides for problem in side.problems)
    seconds = {
        "plan": plan.seconds,
        "decode": sum(side.decode_seconds for side in sides) / plan.streams,
        "embedding": embedded - started,
        "ranking": 0.0 if reranked else ranking,
        "reranking": ranking if reranked else 0.0,  # the search behind it included
    }
    log = {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "settings": {
            "input_size": input_size,
            "device": str(plan.device),
            "precision": plan.precision,
            "backend": plan.backend,
            "memory_format": plan.memory_format,
            "batch_size": plan.batch_size,
            "streams": plan.streams,
            "threads": plan.threads,
            "views": dict(zip(settings.fits, settings.sides(input_size), strict=True)),
            "flip": settings.flip,
            "crops": settings.crops,
            "trim_borders": settings.trim_borders,
        },
        "clock": deadline.report(),
        "rerank": described,
    }
    return Ranking(fill_to_width(found, len(gallery)), problems, log)


def _ranked_in_time(
    queries: Tensor,
    gallery: Tensor,
    steps: Sequence[Step],
    own: np.ndarray | None,
    deadline: Deadline,
) -> np.ndarray:
    """What :func:`nearest_rows` returns, without re-ranking where there is no time for it."""
    if steps and deadline.may_rerank():
        try:
            return call_within(deadline.left(), lambda: nearest_rows(queries, gallery, steps, own))
        except TimeoutError:
            deadline.reranks = False
    return nearest_rows(queries, gallery, (), own)


def too_many_unreadable(problems: Sequence[ImageProblem], images: int) -> str:
    """A sentence where more than :data:`MAX_UNREADABLE` of the images gave nothing to rank by."""
    lost = [problem for problem in problems if problem.reason.endswith(UNUSED)]
    if len(lost) <= MAX_UNREADABLE * images:
        return ""
    return (
        f"{len(lost)} of {images} images could not be read, for example {lost[0].path}: "
        f"{lost[0].reason}"
    )


def trimmed(gallery: Sequence[ImageItem], settings: EmbedSettings) -> Sequence[ImageItem]:
    """The gallery's images, without their white borders where the settings say so."""
    return [replace(item, trim=True) for item in gallery] if settings.trim_borders else gallery


def nearest_rows(
    queries: Tensor,
    gallery: Tensor,
    steps: Sequence[Step] = (),
    own: np.ndarray | None = None,
    width: int = MAX_PREDICTIONS,
) -> np.ndarray:
    """The `width` gallery rows most similar to each query, after re-ranking, best first.

    Where re-ranking runs out of memory, plain cosine ranking answers.

    Args:
        queries: `(n_queries, dimension)`, float32, unit vectors or zeros.
        gallery: `(n_gallery, dimension)`, the same.
        steps: of re-ranking; none is plain cosine ranking.
        own: `(n_queries,)`, where the queries are rows of the gallery, which: it is left out.
        width: gallery rows per query.

    Returns:
        `(n_queries, columns)`, int64; fewer than `width` columns where the gallery is smaller.
    """
    width += own is not None
    try:
        ranks = rank(queries, gallery, steps, width).numpy()
    except (MemoryError, RuntimeError) as error:  # torch raises the second where memory is out
        if not steps:
            raise
        print(f"re-ranking is left out: {error}")
        ranks = rank(queries, gallery, (), width).numpy()
    return ranks if own is None else without_own(ranks, own)


def without_own(ranks: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A ranking of images against each other, without the query itself, one column fewer.

    The query is known by its gallery row, not by its place: among equal images it need not come
    first, and among more than there are columns it need not be there at all. Then the last column
    goes.

    Args:
        ranks: `(n_queries, columns)`, gallery row indexes, each at most once in a row.
        own: `(n_queries,)`, the gallery row of each query.
    """
    goes = ranks == own[:, None]
    goes[~goes.any(axis=1), -1] = True
    return ranks[~goes].reshape(len(ranks), ranks.shape[1] - 1)


def fill_to_width(ranks: np.ndarray, n_gallery: int) -> np.ndarray:
    """Widen the ranking of a small gallery to the 1,000 columns that the evaluator insists on.

    The rule: behind the whole gallery come the indexes `n_gallery, n_gallery + 1, …`. They name
    no image, so they are never relevant, and no row repeats an index.
    """
    filler = np.arange(n_gallery, n_gallery + MAX_PREDICTIONS - ranks.shape[1], dtype=ranks.dtype)
    return np.concatenate([ranks, np.broadcast_to(filler, (len(ranks), len(filler)))], axis=1)
