"""The time limit of a submission: what to give up, and when, to answer in time.

The pace is measured while images are embedded. Where it is too slow for the images that are left,
the dearer views of `embedding.views` go first, then resolution, at last mirrors and crops; then
re-ranking is left out; what not even that saves keeps the zero vector, and the answer still comes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

# Sides of the squares to fall back on, as shares of the model's own.
SIZE_SHARES = (0.85, 0.7, 0.5)
# Patches of transformers and strides of convolutions: a side that both kinds take is a multiple.
SIDE_STEPS = (32, 14)
# Kept back of every limit: the search, writing the answer, a busy machine. The hidden test's
# search (14,000 x 26,000 x 2,048 on four cores) takes less than 5 of its 600 seconds.
RESERVE_SHARE, RESERVE_SECONDS = 0.03, 0.5
# Kept back for each step of re-ranking; one that needs more is given up when its time is over.
RERANK_SHARE, RERANK_SHARES = 0.03, {"k_reciprocal": 0.2}
# The plan needs less than the time that is left by this share: the pace is a guess.
PLAN_MARGIN = 0.05
# How much a new batch weighs in the measured pace.
PACE_WEIGHT = 0.3

LIGHTER = "one view (--views squash), a smaller model or, of an ensemble, fewer models"
"""What to take where the time does not do, beside a smaller input."""

# What images are called for which there was no time at all.
NOT_EMBEDDED = "images not embedded at all"


@dataclass(frozen=True)
class Effort:
    """How the next images are embedded."""

    size: int
    """Side of the square in pixels."""
    copies: bool
    """Whether each view is also seen mirrored and in crops, as the settings wish."""
    views: int = 1
    """How many of `embedding.views` are seen, the cheapest."""

    def side_of(self, side: int, full: int) -> int:
        """Of a view of `side` pixels, where `full` is the model's own."""
        return side if self.size == full else min(side, self.size)


def cheaper_efforts(size: int, has_copies: bool, views: int = 1) -> list[Effort]:
    """What to try, from the wish down to the cheapest: views go first, resolution, then copies.

    A second view gains less than the resolution of the first that its time would cost. Each lower
    resolution stands as a multiple of 32 and of 14 pixels; a model that refuses one may take the
    other.
    """
    sides = {size}
    for share in SIZE_SHARES:
        for unit in SIDE_STEPS:
            side = round(size * share / unit) * unit
            if 0 < side < size:
                sides.add(side)
    efforts = [Effort(size, has_copies, count) for count in range(views, 1, -1)]
    efforts += [Effort(side, has_copies) for side in sorted(sides, reverse=True)]
    return [*efforts, Effort(efforts[-1].size, False)] if has_copies else efforts


class Deadline:
    """Counts down from a limit, and decides from the measured pace how images are embedded.

    An image's time is modelled as decode + model x copies x (side / full side)^2, the latter summed
    over the views; both parts are running means over the batches. Used by several threads.
    """

    def __init__(
        self, limit: float = math.inf, now: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start counting.

        Args:
            limit: seconds; infinite where there is none.
            now: seconds since any fixed moment.
        """
        self.limit, self._now = limit, now
        self._started_at = now()
        self.reranks = True
        """False once re-ranking had to be given up."""
        self._lock = threading.Lock()
        self.begin(0, 0)

    def begin(
        self,
        images: int,
        size: int,
        copies: int = 1,
        rerank_steps: Sequence[str] = (),
        sides: Sequence[int] = (),
    ) -> None:
        """Say what there is to do, before the first image is embedded.

        Args:
            images: how many there are to embed.
            size: side of the model's input in pixels.
            copies: of each view with mirrors and crops, 1 without.
            rerank_steps: names of the steps of re-ranking.
            sides: of each view of `embedding.views`, in pixels; none: one view of `size`.
        """
        self._images, self._size, self._copies = images, size, copies
        self._sides = sorted(sides or (size,))
        self._efforts = cheaper_efforts(size, copies > 1, len(self._sides))
        share = sum(RERANK_SHARES.get(name, RERANK_SHARE) for name in rerank_steps)
        self._rerank_reserve = 0.0 if math.isinf(self.limit) else share * self.limit
        self._images_at: Counter[Effort | None] = Counter()
        self._decode = self._model = 0.0
        self._begun = 0

    def spent(self) -> float:
        """Seconds since the start."""
        return self._now() - self._started_at

    def left(self) -> float:
        """Seconds left for re-ranking, which leave enough to search and to answer."""
        reserve = 0.0
        if not math.isinf(self.limit):
            reserve = RESERVE_SHARE * self.limit + RESERVE_SECONDS
        return self.limit - self.spent() - reserve

    def left_to_embed(self) -> float:
        """Seconds left for embedding."""
        return self.left() - (self._rerank_reserve if self.reranks else 0.0)

    def may_rerank(self) -> bool:
        """Whether there still is time for re-ranking, now that all images are embedded."""
        self.reranks = self.reranks and self.left_to_embed() >= 0
        return self.reranks

    def next_effort(self, images: int, streams: int) -> Effort | None:
        """How to embed the next `images`, in one of `streams` side by side; None: not at all."""
        with self._lock:
            effort = self._fitting(images, streams)
            self._begun += images
            return effort

    def _fitting(self, images: int, streams: int) -> Effort | None:
        if math.isinf(self.limit):
            return self._efforts[0]
        waiting = self._images - self._begun
        while True:
            for effort in self._efforts:
                # Streams do not end together: the last batch may find the others idle.
                needed = self._seconds(effort) * (waiting / streams + images)
                if needed * (1 + PLAN_MARGIN) <= self.left_to_embed():
                    return effort
            if not (self.reranks and self._rerank_reserve):
                break
            self.reranks = False
        last = self._efforts[-1]
        return last if self._seconds(last) * images < self.left_to_embed() else None

    def _seconds(self, effort: Effort) -> float:
        """Predicted for one image in one stream."""
        return self._decode + self._model * self._passes(effort)

    def _passes(self, effort: Effort) -> float:
        """What an image costs, in passes of the model at its full side."""
        copies = self._copies if effort.copies else 1
        sides = [effort.side_of(side, self._size) for side in self._sides[: effort.views]]
        return sum(copies * (side / self._size) ** 2 for side in sides)

    def record(self, effort: Effort, images: int, decode: float, model: float) -> None:
        """Tell how a batch was embedded, and the seconds to read it and in the model."""
        unit = model / images / self._passes(effort)
        with self._lock:
            weight = PACE_WEIGHT if self._model else 1.0
            self._decode += weight * (decode / images - self._decode)
            self._model += weight * (unit - self._model)

    def refused(self, effort: Effort, images: int, streams: int) -> Effort | None:
        """Another effort for a batch whose side the model refuses; that is not tried again."""
        with self._lock:
            self._efforts = [other for other in self._efforts if other.size != effort.size]
            if self._copies > 1 and self._efforts[-1].copies:
                self._efforts.append(Effort(self._efforts[-1].size, False))
            self._begun -= images
        return self.next_effort(images, streams)

    def count(self, effort: Effort | None, images: int) -> None:
        """Count images that are done with: embedded, or left out."""
        self._images_at[effort] += images

    def skip(self, images: int) -> None:
        """Tell of images that are never asked about, since the time is over."""
        with self._lock:
            self._begun += images

    def report(self) -> dict[str, Any]:
        """What the limit did, for the ranker's log."""
        sizes: Counter[str] = Counter()
        fewer_views = 0
        for effort, images in self._images_at.items():
            if effort is not None and images:
                sizes[str(effort.size)] += images
                fewer = effort.views < len(self._sides) or (self._copies > 1 and not effort.copies)
                fewer_views += images if fewer else 0
        return {
            "limit_seconds": None if math.isinf(self.limit) else self.limit,
            "photos_by_size": dict(sizes),
            "photos_without_views": fewer_views,
            "photos_without_embedding": self._images_at[None],
            "reranking_reserve_seconds": self._rerank_reserve,
            "reranking_skipped": self._rerank_reserve > 0 and not self.reranks,
        }


def degradations(report: Mapping[str, Any], size: int | None) -> dict[str, str]:
    """What was given up to be in time: names and numbers, for messages; empty if nothing.

    Args:
        report: of :meth:`Deadline.report`, or what another ranker wrote in its place.
        size: side of the model's own input in pixels; None where it is not known.
    """
    smaller = sum(n for side, n in report.get("photos_by_size", {}).items() if side != str(size))
    parts = {
        "images at a lower resolution": smaller if size else 0,
        "images with fewer views": report.get("photos_without_views"),
        NOT_EMBEDDED: report.get("photos_without_embedding"),
        "re-ranking": "all" if report.get("reranking_skipped") else None,
    }
    return {name: str(value) for name, value in parts.items() if value}


def listed(given_up: Mapping[str, str]) -> str:
    """What :func:`degradations` returns, on one line."""
    return ", ".join(f"{name}: {value}" for name, value in given_up.items())


Answer = TypeVar("Answer")


def call_within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """What `call` returns or raises, in another thread where it may take `seconds` at the most.

    Raises:
        TimeoutError: when it is not done by then; its thread is left to itself, and does not keep
            the process from its end.
    """
    if math.isinf(seconds):
        return call()
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(min(max(seconds, 0.0), threading.TIMEOUT_MAX))
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"not done in {seconds:.1f} s") from None
