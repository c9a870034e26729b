"""From measured runs to the hidden test: seconds, memory, and the largest input size that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from visual_search.common.errors import UserError
from visual_search.ranking.deadline import LIGHTER
from visual_search.submission.sandbox import Limits

# Share of the time and of the memory that a size may be expected to take; the rest is for a
# slower day.
USED_SHARE = 0.9
SIZE_STEP, LARGEST_SIZE = 32, 1024
# How many sizes are tried: its own, those that a line suggests, and halves of what is left.
MAX_TRIALS = 7

# Bytes of an int64 row of 1,000 ranks, and of an embedding of 2,048 dimensions in fp32.
RANKS_ROW, EMBEDDING_ROW = 8_000, 8_192

# The input of a dry run in pixels, and how long it may be expected to take in seconds.
DRY_SIZE, DRY_SECONDS = 32, 120.0


class ImageCounts(NamedTuple):
    """How much there is to rank."""

    queries: int
    gallery: int

    def __str__(self) -> str:
        return f"{self.queries:,} queries and {self.gallery:,} gallery images"

    @property
    def total(self) -> int:
        """Images to embed."""
        return self.queries + self.gallery

    @property
    def similarities(self) -> int:
        """Of the ranking: every query against the gallery."""
        return self.queries * self.gallery

    @property
    def neighbours(self) -> int:
        """Similarities of re-ranking, which looks for neighbours within the gallery as well."""
        return self.total * self.gallery


# The hidden test of the challenge: some 40,000 images in all.
HIDDEN_TEST = ImageCounts(queries=14_000, gallery=26_000)


@dataclass(frozen=True)
class Run:
    """One run, measured or predicted: where its seconds go, and its memory."""

    input_size: int | None
    """Pixels; None where the ranker does not say."""
    counts: ImageCounts
    peak_memory: int
    """Bytes."""
    loading: float
    """Model and tables; where the ranker does not say, all that is in no other stage."""
    embedding: float
    """From files to vectors, decoding included."""
    ranking: float = 0.0
    reranking: float = 0.0
    decode: float | None = None
    """Decoding alone; it overlaps the model, so it is part of `embedding`."""
    rerank_reserve: float = 0.0
    """Seconds that the ranker keeps back for re-ranking, where it watches the time."""

    @classmethod
    def from_log(
        cls, log: Mapping[str, Any], counts: ImageCounts, total: float, memory: int
    ) -> Run:
        """Read the ranker's log.

        Args:
            log: what it wrote to $VISUAL_SEARCH_RANKER_LOG; empty where it writes none.
            counts: what it ranked.
            total: seconds of the timed call.
            memory: its peak in bytes.
        """
        said = log.get("seconds") or {}
        ranking, reranking = said.get("ranking") or 0.0, said.get("reranking") or 0.0
        embedding = said.get("embedding")
        if embedding is None:  # all that is in no other stage counts as work on images
            embedding = max(total - (said.get("loading") or 0.0) - ranking - reranking, 0.0)
        return cls(
            log.get("input_size") or log.get("settings", {}).get("input_size"),
            counts,
            memory,
            max(total - embedding - ranking - reranking, 0.0),
            embedding,
            ranking,
            reranking,
            said.get("decode"),
            float((log.get("clock") or {}).get("reranking_reserve_seconds") or 0.0),
        )

    @property
    def seconds(self) -> float:
        """All stages together: the call that the evaluator times."""
        return self.loading + self.embedding + self.ranking + self.reranking

    @property
    def embedding_per_image(self) -> float:
        """Seconds, never 0."""
        return max(self.embedding / self.counts.total, 1e-9)


def predict(
    run: Run,
    target: ImageCounts,
    core_share: float = 1.0,
    smaller: Run | None = None,
    dry: Run | None = None,
) -> Run:
    """Scale a run to another number of images, on as many cores as the evaluator has.

    Loading stays. Embedding grows with the images, ranking with queries x gallery, re-ranking
    with (queries + gallery) x gallery: it looks for neighbours of both sides. Where a ranker that
    watches the time keeps back more for it than it takes, that is what counts: it lowers the
    resolution before it touches what it keeps. The memory is the larger of what real images
    need and what the rows of the hidden test need.

    Args:
        run: what was measured on real images.
        target: what is asked for.
        core_share: cores of the measurement divided by those of the evaluator. Embedding and
            ranking are taken to speed up in proportion, loading not at all.
        smaller: a run of the same size over fewer images, to tell the slow first batches from
            the rest.
        dry: a run over as many rows as `target`, or nearly, at a tiny input. Ranking, re-ranking
            and memory are scaled from it where there is one: a development set is too small.
    """
    per_image = run.embedding_per_image
    if smaller is not None and smaller.counts.total < run.counts.total:
        slope = (run.embedding - smaller.embedding) / (run.counts.total - smaller.counts.total)
        per_image = float(np.clip(slope, 0.5 * per_image, per_image))
    fixed = run.embedding - per_image * run.counts.total
    large = dry or run
    ranking = large.ranking * target.similarities / large.counts.similarities
    reranking = large.reranking * target.neighbours / large.counts.neighbours
    reranking = max(reranking, run.rerank_reserve)
    return replace(
        run,
        counts=target,
        loading=run.loading + fixed,
        embedding=target.total * per_image * core_share,
        ranking=ranking * core_share,
        reranking=reranking * core_share,
        peak_memory=max(_memory(measured, target) for measured in (run, large)),
    )


def _memory(measured: Run, target: ImageCounts) -> int:
    """Bytes: what was measured, and the embeddings and ranks of the rows that were not there."""
    more_images = max(target.total - measured.counts.total, 0)
    more_queries = max(target.queries - measured.counts.queries, 0)
    return measured.peak_memory + EMBEDDING_ROW * more_images + RANKS_ROW * more_queries


def dry_counts(run: Run, target: ImageCounts, seconds: float = DRY_SECONDS) -> ImageCounts:
    """`target`, made smaller in proportion where its rows would take long even at a tiny input.

    Args:
        run: a run on real images; an image at :data:`DRY_SIZE` is taken to cost a tenth.
        target: the hidden test.
        seconds: how long the dry run may be expected to take.
    """
    share = min(seconds / (run.embedding_per_image / 10 * target.total), 1.0)
    # Below a few thousand rows of the gallery, a top-1000 is another problem.
    share = max(share, min(4000 / target.gallery, 1.0))
    return ImageCounts(max(round(target.queries * share), 1), max(round(target.gallery * share), 1))


def fits(expected: Run, limits: Limits, share: float = 1) -> bool:
    """Whether a run stays within a share of the limits."""
    in_time = expected.seconds <= limits.seconds * share
    return in_time and expected.peak_memory <= limits.memory * share


class LargestSize(NamedTuple):
    """The answer, or why there is none."""

    input_size: int | None
    trials: tuple[Run, ...] = ()
    """Of each size that was run on the sample, what the hidden test would take."""
    reason: str | None = None
    """Why there is no size, or no other, in words."""


def find_largest_size(
    measure: Callable[[int], Run], base: Run, sample: Run, limits: Limits
) -> LargestSize:
    """Draw a line of seconds over squared pixels through two sizes, and run what it promises.

    A model's work grows with the pixels; reading and decoding a file hardly does. As long as one
    size is known, the line begins at none of the work on images. Where a size does not keep what
    the line promised, the search closes in on it by halves.

    Args:
        measure: runs the submission on the sample at a size in pixels; raises a
            UserError where it cannot.
        base: what the hidden test takes at the submission's own size.
        sample: the run over the sample at that size.
        limits: of the evaluator.
    """
    own = sample.input_size
    if own is None:
        return LargestSize(None, reason="the ranker's log names no input size")
    # A sample feels the slow first batches more than the hidden test will.
    scale = base.embedding / sample.embedding_per_image
    seconds = {0: base.seconds - base.embedding}
    trials: dict[int, Run] = {}
    fitting: list[int] = []
    run, reason = sample, None
    try:
        while True:
            size = run.input_size
            if size is None or size in trials:
                raise UserError("the ranker does not follow VISUAL_SEARCH_INPUT_SIZE")
            trials[size] = replace(
                base,
                input_size=size,
                embedding=run.embedding_per_image * scale,
                peak_memory=base.peak_memory + max(run.peak_memory - sample.peak_memory, 0),
            )
            seconds[size] = trials[size].seconds
            fitting = sorted(s for s in trials if fits(trials[s], limits, USED_SHARE))
            beyond = sorted(trials.keys() - set(fitting))
            line = [0, *fitting][-2:] if fitting else [0, *beyond] if len(trials) == 1 else beyond
            points = [(s**2, seconds[s]) for s in line[:2]]
            wanted = size_on_line(points, limits.seconds * USED_SHARE)
            largest, bound = max(fitting, default=0), min(beyond, default=LARGEST_SIZE + SIZE_STEP)
            if fitting == [own]:
                wanted = max(wanted, own // SIZE_STEP * SIZE_STEP + SIZE_STEP)
            if wanted >= bound:  # measured, and it does not fit
                wanted = (largest + bound) // 2 // SIZE_STEP * SIZE_STEP
            if wanted <= largest or len(trials) == MAX_TRIALS:
                break
            run = measure(wanted)
    except UserError as error:
        reason = f"another size cannot be had: {error}"
    if not fitting and reason is None:
        reason = (
            f"no size stays within {USED_SHARE:.0%} of the time and of the memory: take {LIGHTER}"
        )
    by_size = tuple(trials[size] for size in sorted(trials))
    return LargestSize(max(fitting, default=None), by_size, reason)


def size_on_line(points: Sequence[tuple[int, float]], seconds: float) -> int:
    """The largest multiple of 32 pixels that takes `seconds`, by the line through two sizes.

    Args:
        points: of two sizes, squared pixels and the seconds that they take, the smaller one first.
        seconds: that there are.
    """
    (low, at_low), (high, at_high) = points
    slope, left = (at_high - at_low) / (high - low), seconds - at_low
    if slope <= 0:  # it costs no more
        return LARGEST_SIZE if left >= 0 else 0
    square = low + left / slope
    size = math.floor(math.sqrt(max(square, 0)) / SIZE_STEP + 1e-9) * SIZE_STEP
    return min(size, LARGEST_SIZE)
