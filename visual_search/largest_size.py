"""The largest input size that fits the evaluator's limits: measured, fitted, verified, scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from visual_search.capacity import (
    LARGEST_SIZE,
    MEMORY_SHARE,
    SIZE_STEP,
    TIME_SHARE,
    Prediction,
    Run,
    Workload,
    fit_size_cost,
    largest_size,
    probe_sizes,
)

# How often a size is tried that the fit, or half of what is left, suggests.
MAX_TRIALS = 5


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

    @property
    def fitting(self) -> int | None:
        """The largest size that was run and fits."""
        return max((trial.input_size for trial in self.trials if trial.fits), default=None)

    @property
    def too_large(self) -> int | None:
        """The smallest size that was run and does not fit."""
        return min((trial.input_size for trial in self.trials if not trial.fits), default=None)

    def by_fit(self) -> int | None:
        """The largest size that fits if the cost grows with the pixels, as the trials say."""
        per_image = [1 / trial.images_per_second for trial in self.trials]
        cost = fit_size_cost([trial.input_size for trial in self.trials], per_image)
        others = self.base.seconds - self.base.embedding
        left = self.bounds.seconds * TIME_SHARE - others
        images = self.bounds.workload.images * self.bounds.core_share * self.correction
        return largest_size(cost, left / images)

    def between(self) -> int | None:
        """The size half-way between what fits and what does not; None where there is none."""
        low, high = self.fitting or 0, self.too_large or LARGEST_SIZE + SIZE_STEP
        middle = (low + high) // 2 // SIZE_STEP * SIZE_STEP
        return middle if low < middle < high else None


def _verified(
    sizes: _Sizes, run_sample: Callable[[int], Run], announce: Callable[[str], None]
) -> LargestSize:
    """Run what the fit promises; where it does not keep its word, close in on what does."""
    guess = sizes.by_fit()
    for _ in range(MAX_TRIALS):
        low, high = sizes.fitting or 0, sizes.too_large
        if guess is None or guess <= low:
            break
        if high is not None and guess >= high:  # measured, and it does not fit
            guess = sizes.between()
            continue
        announce(f"verifying {guess} px")
        if sizes.add(run_sample(guess)).fits:
            break
        guess = sizes.between()
    reason = None
    if sizes.fitting is None:
        reason = (
            f"no size stays within {TIME_SHARE:.0%} of the time and {MEMORY_SHARE:.0%} of the "
            "memory: take a smaller model"
        )
    return LargestSize(sizes.fitting, tuple(sizes.trials), reason)


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
