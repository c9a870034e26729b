"""A development set as a model sees it: embedded once, then read from the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.config import EmbedSettings
from visual_search.data.dev_sets import DevSet
from visual_search.data.images import ImageItem, ImageProblem
from visual_search.evaluation.metrics import average_precision, check_ranks
from visual_search.model.checkpoint import fingerprint, load_checkpoint
from visual_search.model.projections import project_features
from visual_search.ranking.embed import (
    NOT_FINITE,
    Embeddings,
    default_device,
    embed_images,
    mean_of_units,
    refuse_broken_model,
)
from visual_search.ranking.export import load_model
from visual_search.ranking.rank import (
    Ranking,
    fill_to_width,
    nearest_rows,
    rank_gallery,
    too_many_unreadable,
    trimmed,
)
from visual_search.ranking.rerank import Step
from visual_search.ranking.store import model_folder, stored_features


def unmatched_sentence(dev_set: DevSet) -> str:
    """The rule for queries without a match, with their number; empty where there are none."""
    count = dev_set.unmatched
    if not count:
        return ""
    of = f"{count} of {len(dev_set.queries)} queries"
    return f"{of} have no match in the gallery; each counts as 0 in the mean, as in the challenge"


def precisions_of(dev_set: DevSet, ranks: np.ndarray) -> np.ndarray:
    """Average precision of each query, `(n_queries,)`, 0..1, of gallery rows, best first."""
    products = dev_set.gallery_products, dev_set.query_products
    return average_precision(ranks, *products, dev_set.own)


@dataclass(frozen=True)
class EmbeddedDevSet:
    """A development set as a model sees it."""

    dev_set: DevSet
    gallery: Tensor
    queries: Tensor
    description: Path
    """The `model.json` of the model."""

    def score(self, steps: Sequence[Step]) -> np.ndarray:
        """Average precision of each query with these re-ranking steps, 0..1."""
        ranks = nearest_rows(self.queries, self.gallery, steps, self.dev_set.own)
        return precisions_of(self.dev_set, ranks)


def tell_problems(problems: Sequence[ImageProblem]) -> None:
    """Print which images are damaged: three of them, and how many more."""
    for problem in problems[:3]:
        print(f"  {problem.path}: {problem.reason}")
    if len(problems) > 3:
        print(f"  and {len(problems) - 3} more damaged images")


def embed_dev_set(source: Path, dev_set: DevSet, input_size: int, cache: Path) -> EmbeddedDevSet:
    """Embed a development set with a run's or an export's model, or read what was kept.

    Args:
        source: a run folder, a checkpoint, or an export's folder.
        dev_set: its images.
        input_size: pixels; 0 takes the model's own.
        cache: where embeddings are kept.

    Raises:
        UserError: when the model is missing or damaged.
    """
    device = default_device()
    checkpoint, weights = load_checkpoint(source), fingerprint(source)
    architecture = checkpoint.architecture
    size = input_size or architecture.input_size
    where = str(checkpoint.path.with_name("model.json"))
    embedding = EmbedSettings.parsed(checkpoint.facts.get("embedding") or {}, where)
    embedding = embedding.at(size, architecture.input_size)
    settings = {
        "architecture": asdict(architecture),
        "input_size": size,
        "device": device.type,
        "embedding": asdict(embedding),
    }
    started, matrices = time.perf_counter(), []
    for label, items in _sides(dev_set, embedding).items():

        def make(some: Sequence[ImageItem], part: str, label: str = label) -> Embeddings:
            model = load_model(checkpoint, device, input_size=size)
            words = label + part
            return embed_images(model, some, size, device=device, settings=embedding, label=words)

        found = stored_features(model_folder(cache, weights, settings), items, make)
        matrices.append(found.matrix)
        how = "embedded" if found.made else "read from the cache"
        print(f"{len(items)} {label} {how}", flush=True)
        problems = found.problems(items)
        refuse_broken_model(problems, len(items))
        tell_problems(problems)
    print(f"{architecture.backbone}, {size} px, {time.perf_counter() - started:.1f} s", flush=True)
    gallery, queries = matrices[0], matrices[-1]
    if dev_set.own is not None:
        print(f"{len(dev_set.queries)} of them are queries, each against all others", flush=True)
        queries = gallery[dev_set.own]
    return EmbeddedDevSet(dev_set, gallery, queries, checkpoint.path.with_name("model.json"))


def _sides(dev_set: DevSet, settings: EmbedSettings) -> dict[str, Sequence[ImageItem]]:
    """What there is to embed, by what it is called."""
    sides: dict[str, Sequence[ImageItem]] = {"gallery images": trimmed(dev_set.gallery, settings)}
    return sides if dev_set.own is not None else {**sides, "query images": dev_set.queries}


@dataclass(frozen=True)
class SeenDevSet:
    """A development set as a network sees it, to be judged with whatever neck is put behind."""

    dev_set: DevSet
    gallery: Tensor
    """`(n_gallery, views * width)`, float32, the features of the views side by side."""
    queries: Tensor | None
    """`(n_queries, views * width)`; None where the queries are rows of the gallery."""
    problems: tuple[ImageProblem, ...]
    """That its images had."""
    views: int = 1

    def evaluate(
        self, neck: nn.Module, device: torch.device, steps: Sequence[Step] = ()
    ) -> Evaluation:
        """Rank and score the views' means behind a neck, in evaluation mode, on `device`."""
        gallery = self._behind(neck, self.gallery, device)
        if self.queries is None:
            queries = gallery[torch.from_numpy(self.dev_set.own)]
        else:
            queries = self._behind(neck, self.queries, device)
        found = evaluate_embeddings(self.dev_set, gallery, queries, self.problems, steps)
        return replace(found, seen=self)

    def _behind(self, neck: nn.Module, features: Tensor, device: torch.device) -> Tensor:
        views = features.chunk(self.views, dim=1)
        return mean_of_units([project_features(neck, view, device) for view in views])


@dataclass(frozen=True)
class Evaluation:
    """A ranking and its score on a development set."""

    ranking: Ranking
    average_precisions: np.ndarray
    """`(n_queries,)`, 0..1."""
    seen: SeenDevSet | None = None
    """What was ranked, where it was kept."""

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
    settings: EmbedSettings | None = None,
    steps: Sequence[Step] = (),
) -> Evaluation:
    """Rank a development set as the submission would, and score it."""
    ranking = rank_gallery(
        model,
        dev_set.gallery,
        dev_set.queries,
        input_size,
        device=device,
        settings=settings,
        steps=steps,
        own=dev_set.own,
    )
    return _scored(ranking, dev_set)


def see_dev_set(
    model: Callable[[Tensor], Tensor],
    dev_set: DevSet,
    input_size: int,
    *,
    device: torch.device,
    settings: EmbedSettings,
) -> SeenDevSet:
    """Embed a development set, each view by itself; arguments as of :func:`evaluate_on_dev_set`.

    Args:
        settings: without mirrors and crops, whose mean is taken in front of a neck.
    """
    found = [
        embed_images(
            model, items, input_size, device=device, settings=settings, label=name, each_view=True
        )
        for name, items in _sides(dev_set, settings).items()
    ]
    problems = tuple(problem for side in found for problem in side.problems)
    queries = found[1].matrix if len(found) > 1 else None
    return SeenDevSet(dev_set, found[0].matrix, queries, problems, len(settings.fits))


def evaluate_embeddings(
    dev_set: DevSet,
    gallery: Tensor,
    queries: Tensor,
    problems: tuple[ImageProblem, ...] = (),
    steps: Sequence[Step] = (),
) -> Evaluation:
    """Rank and score a development set whose embeddings are at hand.

    Args:
        dev_set: its images are not read.
        gallery: `(n_gallery, dimension)`, float32, unit vectors or zeros.
        queries: `(n_queries, dimension)`, the same.
        problems: that its images had.
        steps: of re-ranking.
    """
    for side in (gallery, queries):
        broken = ~side.isfinite().all(dim=1)
        refuse_broken_model([ImageProblem("", NOT_FINITE)] * int(broken.sum()), len(side))
    ranks = nearest_rows(queries, gallery, steps, dev_set.own)
    return _scored(Ranking(fill_to_width(ranks, len(gallery)), problems), dev_set)


def evaluate_answer(dev_set: DevSet, ranks: np.ndarray, log: Mapping[str, Any]) -> Evaluation:
    """Score what a submission answered.

    Args:
        dev_set: its images are not read.
        ranks: the array.
        log: what the ranker wrote to $VISUAL_SEARCH_RANKER_LOG; empty where it writes none.

    Raises:
        UserError: when the evaluator would refuse the array, or so many images could not be read
            that a score would say nothing.
    """
    n_queries, n_gallery = len(dev_set.queries), len(dev_set.gallery)
    check_ranks(ranks, n_queries, n_gallery)
    problems = tuple(ImageProblem(p["path"], p["reason"]) for p in log.get("problems", []))
    if sentence := too_many_unreadable(problems, n_queries + n_gallery):
        raise UserError(f"{sentence}; a score would say nothing: mend the files")
    return Evaluation(Ranking(ranks, problems), precisions_of(dev_set, ranks))


def _scored(ranking: Ranking, dev_set: DevSet) -> Evaluation:
    queries = len(dev_set.queries) if dev_set.own is None else 0
    refuse_broken_model(ranking.problems, len(dev_set.gallery) + queries)
    if sentence := unmatched_sentence(dev_set):
        print(sentence, flush=True)
    return Evaluation(ranking, precisions_of(dev_set, ranking.ranks))
