"""The time limit of a submission: what to give up, and when, to answer in time.

The pace is measured while photos are embedded. Where it is too slow for the photos that are left,
they are embedded at a lower resolution; then with one view instead of several; then re-ranking is
left out; what not even that saves keeps the zero vector, and the answer still comes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Sides of the squares to fall back on, as shares of the model's own.
SIZE_SHARES = (0.85, 0.7, 0.5)
# Patches of transformers and strides of convolutions: a side that both kinds take is a multiple.
SIDE_STEPS = (32, 14)
# Kept back of every limit, beside the time of ranking: writing the answer, a busy machine.
SAFETY_SHARE, SAFETY_SECONDS = 0.02, 0.5
# The plan needs less than the time that is left by this share: the pace is a guess.
PLAN_MARGIN = 0.05
# How much a new batch weighs in the measured pace.
PACE_WEIGHT = 0.3

# What photos are called for which there was no time at all.
NOT_EMBEDDED = "photos not embedded at all"


class Clock:
    """Counts down from a limit."""

    def __init__(
        self, limit: float = math.inf, now: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start counting.

        Args:
            limit: seconds; infinite where there is none.
            now: seconds since any fixed moment.
        """
        self.limit, self._now = limit, now
        self._started = now()

    def spent(self) -> float:
        """Seconds since the start."""
        return self._now() - self._started

    def left(self) -> float:
        """Seconds until the limit; negative behind it."""
        return self.limit - self.spent()


@dataclass(frozen=True)
class Step:
    """How the next photos are embedded."""

    size: int
    """Side of the square in pixels."""
    views: bool
    """Whether each photo is seen in all the views of test-time augmentation."""


def fallback_steps(size: int, has_views: bool) -> list[Step]:
    """What to try, from the wish down to the cheapest: resolution goes first, then the views.

    Each lower resolution stands as a multiple of 32 and of 14 pixels; a model that refuses one
    may take the other.
    """
    sides = [size]
    for share in SIZE_SHARES:
        for unit in SIDE_STEPS:
            side = round(size * share / unit) * unit
            if 0 < side < sides[0] and side not in sides:
                sides.append(side)
    steps = [Step(side, has_views) for side in sorted(sides, reverse=True)]
    return [*steps, Step(steps[-1].size, False)] if has_views else steps


class Pacer:
    """Decides from the measured pace how the next photos are embedded. Used by several threads.

    A photo's time is modelled as decode + views x model x (side / full side)^2; both parts are
    running means over the batches.
    """

    def __init__(
        self,
        clock: Clock,
        photos: int,
        size: int,
        views: int = 1,
        *,
        ranking: float = 0.0,
        reranking: float = 0.0,
    ) -> None:
        """
        Args:
            clock: of the whole submission; it runs already.
            photos: how many there are to embed.
            size: side of the model's input in pixels.
            views: of each photo with test-time augmentation, 1 without.
            ranking: seconds to keep for the search after the embedding.
            reranking: seconds to keep for re-ranking, while that is affordable.
        """
        self.clock, self.photos, self.size, self.views = clock, photos, size, views
        self.reranks = True
        """False once re-ranking had to be given up."""
        self.photos_at: Counter[Step | None] = Counter()
        """Photos embedded in each way; None counts those for which no time was left."""
        self._steps = fallback_steps(size, views > 1)
        self._ranking, self._reranking = ranking, reranking
        self._decode = self._model = 0.0
        self._started = 0
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Seconds to keep for what comes after the embedding."""
        limit = self.clock.limit
        safety = 0.0 if math.isinf(limit) else SAFETY_SHARE * limit + SAFETY_SECONDS
        return safety + self._ranking + (self._reranking if self.reranks else 0.0)

    def may_rerank(self) -> bool:
        """Whether there still is time for re-ranking, now that all photos are embedded."""
        if self.reranks and self.left() < 0:
            self.reranks = False
        return self.reranks

    def left(self) -> float:
        """Seconds left for embedding."""
        return self.clock.left() - self.reserve()

    def next(self, photos: int, streams: int) -> Step | None:
        """How to embed the next `photos`, in one of `streams` side by side; None: not at all."""
        with self._lock:
            step = self._fitting(photos, streams)
            self._started += photos
            return step

    def _fitting(self, photos: int, streams: int) -> Step | None:
        if math.isinf(self.clock.limit):
            return self._steps[0]
        waiting = self.photos - self._started
        while True:
            for step in self._steps:
                # Streams do not end together: the last batch may find the others idle.
                needed = self._seconds(step) * (waiting / streams + photos)
                if needed * (1 + PLAN_MARGIN) <= self.left():
                    return step
            if not (self.reranks and self._reranking):
                break
            self.reranks = False
        last = self._steps[-1]
        return last if self._seconds(last) * photos < self.left() else None

    def _seconds(self, step: Step) -> float:
        """Predicted for one photo in one stream."""
        views = self.views if step.views else 1
        return self._decode + self._model * views * (step.size / self.size) ** 2

    def record(self, step: Step, photos: int, decode: float, model: float) -> None:
        """Tell what a batch took.

        Args:
            step: how it was embedded.
            photos: in it.
            decode: seconds to read them.
            model: seconds in the model.
        """
        views = self.views if step.views else 1
        unit = model / photos / views / (step.size / self.size) ** 2
        with self._lock:
            weight = PACE_WEIGHT if self._model else 1.0
            self._decode += weight * (decode / photos - self._decode)
            self._model += weight * (unit - self._model)

    def refused(self, step: Step, photos: int, streams: int) -> Step | None:
        """Another step for a batch whose side the model does not take; it is not tried again."""
        with self._lock:
            self._steps = [s for s in self._steps if s.size != step.size]
            if self.views > 1 and self._steps[-1].views:
                self._steps.append(Step(self._steps[-1].size, False))
            self._started -= photos
        return self.next(photos, streams)

    def count(self, step: Step | None, photos: int) -> None:
        """Count photos that are done with: embedded by `step`, or left out."""
        with self._lock:
            self.photos_at[step] += photos

    def leave_out(self, photos: int, not_begun: int) -> None:
        """Count photos that nobody waited for, `not_begun` of them not even asked about."""
        with self._lock:
            self.photos_at[None] += photos
            self._started += not_begun

    def report(self) -> dict[str, Any]:
        """What the clock did, for the ranker's log."""
        embedded = {step: n for step, n in self.photos_at.items() if step is not None and n}
        return {
            "limit_seconds": None if math.isinf(self.clock.limit) else self.clock.limit,
            "photos_by_size": _sums((step.size, n) for step, n in embedded.items()),
            "photos_without_views": sum(
                n for step, n in embedded.items() if self.views > 1 and not step.views
            ),
            "photos_without_embedding": self.photos_at[None],
            "reranking_skipped": self._reranking > 0 and not self.reranks,
        }


def given_up(report: Mapping[str, Any], size: int | None) -> dict[str, str]:
    """What a clock left out to be in time: names and numbers, for messages; empty if nothing.

    Args:
        report: of :meth:`Pacer.report`, or what another ranker wrote in its place.
        size: side of the model's own input in pixels; None where it is not known.
    """
    smaller = sum(n for s, n in report.get("photos_by_size", {}).items() if s != str(size))
    parts = {
        "photos at a lower resolution": smaller if size else 0,
        "photos with one view only": report.get("photos_without_views"),
        NOT_EMBEDDED: report.get("photos_without_embedding"),
        "re-ranking": "all" if report.get("reranking_skipped") else None,
    }
    return {name: str(value) for name, value in parts.items() if value}


def listed(left_out: Mapping[str, str]) -> str:
    """What :func:`given_up` returns, on one line."""
    return ", ".join(f"{name}: {value}" for name, value in left_out.items())


def _sums(pairs: Any) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for size, number in pairs:
        counted[str(size)] += number
    return dict(counted)
