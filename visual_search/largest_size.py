"""The largest input size that fits the evaluator's limits: measured, fitted, verified, scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from visual_search.capacity import (
    MEMORY_SHARE,
    SIZE_STEP,
    TIME_SHARE,
    Prediction,
    Run,
    SizeCost,
    Workload,
    fit_size_cost,
    largest_size,
    probe_sizes,
)

# How often a size that turned out too slow is replaced by a smaller one.
MAX_TRIALS = 4


class OtherSizeFailed(Exception):
    """The submission does not run at another size; the message says why."""


@dataclass(frozen=True)
class Trial:
    """One size that was run on the sample."""

    input_size: int
    images_per_second: float
    """Of embedding, on this machine."""
    prediction: Prediction
    fits: bool


@dataclass(frozen=True)
class LargestSize:
    """The answer, or why there is none."""

    input_size: int | None
    trials: tuple[Trial, ...]
    reason: str | None = None
    """Why there is no size, in words."""


@dataclass(frozen=True)
class Bounds:
    """What the sizes are held against."""

    workload: Workload
    seconds: float
    memory: int
    """Bytes."""
    core_share: float
    """Cores of the measurement divided by those of the evaluator."""


def find_largest_size(
    run_sample: Callable[[int], Run],
    base: Prediction,
    sample: Run,
    bounds: Bounds,
    announce: Callable[[str], None],
) -> LargestSize:
    """Measure a sample at two more sizes, fit the cost over the pixels, verify the best fit.

    Args:
        run_sample: runs the submission on the sample at a size in pixels; raises
            :class:`OtherSizeFailed` where it cannot.
        base: what the hidden test takes at the submission's own size.
        sample: the run over the sample at that size.
        bounds: the hidden test and the limits.
        announce: told what goes on.
    """
    own = sample.input_size
    if own is None:
        return LargestSize(None, (), "the ranker's log names no input size")
    sizes = _Sizes(base, sample, bounds)
    sizes.add(sample)
    try:
        for size in probe_sizes(own):
            announce(f"measuring a sample at {size} px")
            sizes.add(run_sample(size))
        return _verified(sizes, run_sample, announce)
    except OtherSizeFailed as error:
        own_fits = sizes.trials[0].fits
        return LargestSize(
            own if own_fits else None, tuple(sizes.trials), f"another size cannot be had: {error}"
        )


class _Sizes:
    """The sizes measured so far, and what follows for others."""

    def __init__(self, base: Prediction, sample: Run, bounds: Bounds) -> None:
        self.base, self.bounds, self.sample = base, bounds, sample
        # A sample feels the slow first batches more than the hidden test will.
        images = bounds.workload.images * bounds.core_share
        measured = sample.seconds.embedding / sample.workload.images
        self.correction = self.base.embedding / images / measured if measured else 1.0
        self.trials: list[Trial] = []

    def add(self, run: Run) -> Trial:
        if run.input_size is None or run.input_size in {t.input_size for t in self.trials}:
            raise OtherSizeFailed("the ranker does not follow VISUAL_SEARCH_INPUT_SIZE")
        per_image = run.seconds.embedding / run.workload.images
        prediction = self._prediction(per_image * self.correction, run.peak_memory)
        self.trials.append(
            Trial(
                run.input_size,
                1 / max(per_image, 1e-9),
                prediction,
                prediction.fits(self.bounds.seconds, self.bounds.memory),
            )
        )
        return self.trials[-1]

    def _prediction(self, per_image: float, peak_memory: int) -> Prediction:
        images = self.bounds.workload.images * self.bounds.core_share
        more = max(peak_memory - self.sample.peak_memory, 0)
        return replace(self.base, embedding=per_image * images, memory=int(self.base.memory + more))

    def best_guess(self) -> int | None:
        """By the fit over all trials; never a size that was measured and does not fit."""
        per_image = [1 / trial.images_per_second for trial in self.trials]
        cost: SizeCost = fit_size_cost([trial.input_size for trial in self.trials], per_image)
        others = self.base.seconds - self.base.embedding
        left = self.bounds.seconds * TIME_SHARE - others
        images = self.bounds.workload.images * self.bounds.core_share * self.correction
        guess = largest_size(cost, left / images)
        too_large = [trial.input_size for trial in self.trials if not trial.fits]
        ceiling = min(too_large, default=None)
        if ceiling is not None and guess is not None and guess >= ceiling:
            guess = (ceiling - 1) // SIZE_STEP * SIZE_STEP or None
        return guess


def _verified(
    sizes: _Sizes, run_sample: Callable[[int], Run], announce: Callable[[str], None]
) -> LargestSize:
    for _ in range(MAX_TRIALS):
        guess = sizes.best_guess()
        fitting = max((t.input_size for t in sizes.trials if t.fits), default=None)
        if guess is None or (fitting is not None and guess <= fitting):
            break
        announce(f"verifying {guess} px")
        if sizes.add(run_sample(guess)).fits:
            break
    fitting = max((t.input_size for t in sizes.trials if t.fits), default=None)
    reason = None
    if fitting is None:
        reason = (
            f"no size stays within {TIME_SHARE:.0%} of the time and {MEMORY_SHARE:.0%} of the "
            "memory: take a smaller model"
        )
    return LargestSize(fitting, tuple(sizes.trials), reason)


def as_json(found: LargestSize) -> dict[str, Any]:
    """For result.json."""
    return {
        "input_size": found.input_size,
        "reason": found.reason,
        "trials": [
            {
                "input_size": trial.input_size,
                "images_per_second": round(trial.images_per_second, 2),
                "fits": trial.fits,
                **trial.prediction.as_json(),
            }
            for trial in sorted(found.trials, key=lambda trial: trial.input_size)
        ],
    }
