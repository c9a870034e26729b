"""Intervals of a mean by the bootstrap: over queries, or over the clusters they come in.

The queries of one product are not independent: a model that is better on a product is better on
all its photos. Clusters (products) are then what is drawn. The interval is the expanded percentile
interval of Hesterberg (2015, "What Teachers Should Know About the Bootstrap", section 4.2): the
percentiles of the drawn means, taken a little further out, as Student's t is wider than the normal
distribution and a drawn variance (n - 1) / n too small. The plain percentiles cover less than they
promise with a few dozen clusters.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

DRAWS = 4000
MIN_DIFFERING = 10
"""Of fewer clusters with a value other than zero no bootstrap knows how far the mean may lie."""
# Numbers drawn at once: 2^22 are 32 MB.
AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies."""

    mean: float
    low: float
    high: float
    clusters: int
    """How many independent things it is over."""
    differing: int
    """How many of them have a value other than zero."""

    @property
    def decided(self) -> bool:
        """Whether zero lies outside, and enough clusters differ to say so."""
        return (self.low > 0 or self.high < 0) and self.differing >= MIN_DIFFERING

    def as_json(self) -> dict[str, float]:
        """For files."""
        return asdict(self)


def mean_interval(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The interval of the mean of values that come in clusters.

    The mean is over the values, not over the clusters: a cluster of ten counts ten times. For
    the paired comparison of two models give the differences of their scores.

    Args:
        values: `(n,)`, finite.
        clusters: `(n,)`, the cluster of each, of any type; None: each is its own.
        level: of confidence, 0..1.
        draws: of the bootstrap.
        seed: the same seed gives the same interval.

    Returns:
        With infinite ends where there is one cluster only: nothing is known.

    Raises:
        ValueError: without a value.
    """
    if not len(values):
        raise ValueError("there is no value to take the mean of")
    sums, sizes = _by_cluster(np.asarray(values, dtype=np.float64), clusters)
    count, mean = len(sums), float(sums.sum() / sizes.sum())
    differing = int(np.count_nonzero(sums))
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count, differing)
    drawn = drawn_means(sums, sizes, draws, np.random.default_rng(seed))
    tail = expanded_tail((1 - level) / 2, count)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), count, differing)


def expanded_tail(tail: float, count: int) -> float:
    """The percentile, 0..1, that stands for `tail` with `count` clusters.

    `Phi(sqrt(n / (n - 1)) * t)`, t being the quantile of Student's distribution, n - 1 degrees.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, tail)))


def drawn_means(
    sums: np.ndarray, sizes: np.ndarray, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Means over clusters drawn with replacement, `(draws,)`.

    Args:
        sums: `(clusters,)`, of the values of each.
        sizes: `(clusters,)`, how many those are.
        draws: how often.
        generator: of the draws.
    """
    count = len(sums)
    rows = max(AT_ONCE // count, 1)
    found = []
    for start in range(0, draws, rows):
        drawn = generator.integers(0, count, (min(rows, draws - start), count))
        found.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(found)


def _by_cluster(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if clusters is None:
        return values, np.ones(len(values))
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    return np.bincount(codes, weights=values), np.bincount(codes).astype(np.float64)
