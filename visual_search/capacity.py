"""From what was measured on a sample to the hidden test: seconds, memory, largest input size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from visual_search.ranking_time import Reserve

# The hidden test of the challenge: some 40,000 images in all.
TEST_QUERIES, TEST_GALLERY = 14_000, 26_000

# Share of the time limit that a size may be expected to take: the rest is for a slower day.
TIME_SHARE = 0.9
# The same for memory.
MEMORY_SHARE = 0.9

SIZE_STEP = 32
LARGEST_SIZE = 1024

# Bytes of an int64 row of 1,000 ranks.
RANKS_ROW = 8_000
# Bytes of an embedding of 2,048 dimensions in fp32.
EMBEDDING_ROW = 8_192

# The input of a dry run in pixels, and how long it may be expected to take in seconds.
DRY_SIZE = 32
DRY_SECONDS = 120.0


@dataclass(frozen=True)
class Workload:
    """How much there is to rank."""

    queries: int
    gallery: int

    @property
    def described(self) -> str:
        """In words."""
        return f"{self.queries:,} queries and {self.gallery:,} gallery photos"

    @property
    def images(self) -> int:
        """Photos to embed."""
        return self.queries + self.gallery

    @property
    def comparisons(self) -> int:
        """Similarities of the ranking."""
        return self.queries * self.gallery

    @property
    def neighbours(self) -> int:
        """Similarities of re-ranking, which looks for neighbours within the gallery as well."""
        return self.images * self.gallery


TEST_WORKLOAD = Workload(TEST_QUERIES, TEST_GALLERY)


@dataclass(frozen=True)
class StageSeconds:
    """Where the seconds of one run went; None for a stage that the ranker says nothing about."""

    total: float
    """The call that the evaluator times."""
    loading: float
    """Model and tables; where the ranker does not say, all that is in no other stage."""
    embedding: float
    """From files to vectors, decoding included."""
    ranking: float
    decode: float | None = None
    """Decoding alone; it overlaps the model, so it is part of `embedding`."""
    reranking: float | None = None


def stage_seconds(log: dict, total: float) -> StageSeconds:
    """Read the ranker's log, the present one (`seconds`) or the older one.

    Args:
        log: what the ranker wrote to $VISUAL_SEARCH_RANKER_LOG; empty where it writes none.
        total: seconds of the timed call.
    """
    said = log.get("seconds") or {
        "embedding": log.get("embedding_seconds"),
        "ranking": log.get("ranking_seconds"),
    }
    ranking = said.get("ranking") or 0.0
    reranking = said.get("reranking")
    embedding = said.get("embedding")
    if embedding is None:  # it says nothing: all of it counts as work on images
        embedding = max(total - (said.get("loading") or 0.0) - ranking - (reranking or 0.0), 0.0)
    rest = max(total - embedding - ranking - (reranking or 0.0), 0.0)
    return StageSeconds(total, rest, embedding, ranking, said.get("decode"), reranking)


@dataclass(frozen=True)
class Run:
    """One measured run."""

    input_size: int | None
    """Pixels; None where the ranker does not say."""
    workload: Workload
    seconds: StageSeconds
    peak_memory: int
    """Bytes."""
    reserve: Reserve | None = None
    """Where the ranker has a clock, what that keeps back."""


@dataclass(frozen=True)
class Prediction:
    """What a run would take on the hidden test, on as many cores as the evaluator has."""

    loading: float
    embedding: float
    ranking: float
    """What it takes, or what the ranker's clock keeps for it, whichever is more."""
    reranking: float
    """The same."""
    memory: int
    """Bytes."""

    @property
    def seconds(self) -> float:
        """All stages together."""
        return self.loading + self.embedding + self.ranking + self.reranking

    def fits(
        self,
        seconds: float,
        memory: int,
        seconds_share: float = TIME_SHARE,
        memory_share: float = MEMORY_SHARE,
    ) -> bool:
        """Whether it stays within a share of the limits."""
        return self.seconds <= seconds * seconds_share and self.memory <= memory * memory_share

    def as_json(self) -> dict[str, float]:
        """For result.json."""
        return {**{k: round(v, 1) for k, v in asdict(self).items()}, "seconds": round(self.seconds)}


def predict(
    run: Run,
    target: Workload,
    core_share: float = 1.0,
    smaller: Run | None = None,
    dry: Run | None = None,
) -> Prediction:
    """Scale a run to another workload.

    Loading stays. Embedding grows with the images, ranking with queries x gallery, re-ranking
    with (queries + gallery) x gallery: it looks for neighbours of both sides. Where the ranker's
    clock keeps back more for these two than they take, that is what counts: photos are embedded
    at a lower resolution before the clock touches it. The memory is the larger of what real
    photos need and what the rows of the hidden test need.

    Args:
        run: what was measured on real photos.
        target: what is asked for.
        core_share: cores of the measurement divided by those of the evaluator. Embedding and
            ranking are taken to speed up in proportion, loading not at all.
        smaller: a run of the same size over fewer images, to tell the slow first batches from
            the rest.
        dry: a run over as many rows as `target`, or nearly, at a tiny input. Ranking, re-ranking
            and memory are scaled from it where there is one: a development set is too small.
    """
    embedding = run.seconds.embedding
    per_image = embedding / run.workload.images
    if smaller is not None and smaller.workload.images < run.workload.images:
        more = run.workload.images - smaller.workload.images
        slope = (embedding - smaller.seconds.embedding) / more
        per_image = float(np.clip(slope, 0.5 * per_image, per_image))
    fixed = embedding - per_image * run.workload.images
    large = dry or run
    ranking = large.seconds.ranking * target.comparisons / large.workload.comparisons
    reranking = (large.seconds.reranking or 0.0) * target.neighbours / large.workload.neighbours
    if run.reserve is not None:
        kept = run.reserve.seconds(target.queries, target.gallery)
        ranking, reranking = max(ranking, kept[0]), max(reranking, kept[1])
    memory = max(_memory(measured, target) for measured in (run, large))
    return Prediction(
        loading=run.seconds.loading + fixed,
        embedding=target.images * per_image * core_share,
        ranking=ranking * core_share,
        reranking=reranking * core_share,
        memory=memory,
    )


def _memory(measured: Run, target: Workload) -> int:
    """Bytes: what was measured, and the embeddings and ranks of the rows that were not there."""
    more_images = max(target.images - measured.workload.images, 0)
    more_queries = max(target.queries - measured.workload.queries, 0)
    return measured.peak_memory + EMBEDDING_ROW * more_images + RANKS_ROW * more_queries


@dataclass(frozen=True)
class SizeCost:
    """Seconds an image at an input of s pixels: `fixed + square * s**2`."""

    fixed: float
    square: float

    def at(self, size: int) -> float:
        """Seconds an image."""
        return self.fixed + self.square * size**2


def fit_size_cost(sizes: Sequence[int], seconds_per_image: Sequence[float]) -> SizeCost:
    """Least squares of `fixed + square * s**2`, neither of them negative.

    A model's work grows with the pixels; reading and decoding a file hardly does.

    Raises:
        ValueError: with fewer than two different sizes.
    """
    x = np.asarray(sizes, dtype=float) ** 2
    y = np.asarray(seconds_per_image, dtype=float)
    if len(np.unique(x)) < 2:
        raise ValueError("a fit over the input size needs two different sizes")
    square = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    fixed = float(y.mean() - square * x.mean())
    if square < 0:
        return SizeCost(float(y.mean()), 0.0)
    if fixed < 0:  # through the origin
        return SizeCost(0.0, float((x * y).sum() / (x * x).sum()))
    return SizeCost(fixed, square)


def largest_size(cost: SizeCost, seconds_per_image: float, step: int = SIZE_STEP) -> int | None:
    """The largest multiple of `step` pixels that costs at most `seconds_per_image`, if any."""
    fitting = [
        size for size in range(step, LARGEST_SIZE + 1, step) if cost.at(size) <= seconds_per_image
    ]
    return fitting[-1] if fitting else None


def dry_workload(run: Run, target: Workload, seconds: float = DRY_SECONDS) -> Workload:
    """`target`, made smaller in proportion where its rows would take long even at a tiny input.

    Args:
        run: a run on real photos; an image at :data:`DRY_SIZE` is taken to cost a tenth.
        target: the hidden test.
        seconds: how long the dry run may be expected to take.
    """
    per_image = run.seconds.embedding / run.workload.images / 10
    share = min(seconds / max(per_image * target.images, 1e-9), 1.0)
    # Below a few thousand rows of the gallery, a top-1000 is another problem.
    share = max(share, min(4000 / target.gallery, 1.0))
    return Workload(max(round(target.queries * share), 1), max(round(target.gallery * share), 1))


def probe_sizes(size: int, step: int = SIZE_STEP) -> list[int]:
    """Two other sizes to measure at: one below `size` and one above, multiples of `step`."""
    below = max(round(size * 0.6 / step) * step, step)
    above = min(max(round(size * 1.5 / step), size // step + 1) * step, LARGEST_SIZE)
    return [probe for probe in (below, above) if probe != size]
