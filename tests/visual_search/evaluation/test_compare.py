import numpy as np
import pytest
from scipy import stats

from visual_search.evaluation.compare import expanded_tail, mean_interval


def differences_of_queries(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """Most queries stay as they were; gains are more frequent than losses, and skewed."""
    changed = np.where(rng.random(150) < 0.6, 1, -1) * rng.beta(1, 3, 150)
    return np.where(rng.random(150) < 0.4, changed, 0.0), None


QUERIES_MEAN = 0.4 * 0.2 * 0.25


def differences_of_products(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sixty products of one to seven queries, which move together."""
    sizes = rng.integers(1, 8, 60)
    products = np.repeat(np.arange(60), sizes)
    return rng.normal(0.03, 0.15, 60)[products] + rng.normal(0, 0.1, len(products)), products


PRODUCTS_MEAN = 0.03


@pytest.mark.parametrize("trials", [100, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("draw", "mean"),
    [(differences_of_queries, QUERIES_MEAN), (differences_of_products, PRODUCTS_MEAN)],
)
def test_95_per_cent_intervals_cover_95_per_cent(draw: object, mean: float, trials: int) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(trials):
        interval = mean_interval(*draw(rng), draws=600, seed=seed)  # type: ignore[operator]
        covered += interval.low <= mean <= interval.high
    # Three and a half standard deviations of the count.
    reach = 3.5 * (0.95 * 0.05 / trials) ** 0.5
    assert abs(covered / trials - 0.95) <= reach


def test_agrees_with_students_t_where_that_holds() -> None:
    values = np.random.default_rng(2).normal(0.1, 1, 40)
    interval = mean_interval(values, draws=20_000)
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected, abs=0.03)
    assert interval.mean == pytest.approx(values.mean())
    assert interval == mean_interval(values, draws=20_000) != mean_interval(values, seed=6)
    assert expanded_tail(0.025, 40) == pytest.approx(
        stats.norm.cdf(np.sqrt(40 / 39) * stats.t.ppf(0.025, 39))
    )


def test_the_mean_is_over_queries_also_with_clusters() -> None:
    interval = mean_interval(np.array([1.0, 1, 1, 0]), np.array(["a", "a", "a", "b"]))
    assert interval.mean == 0.75
    # Drawn are the two clusters: their mean is 0, 3 / 4 or 1, never the 2 / 4 of two queries each.
    assert (interval.low, interval.high, interval.clusters) == (0, 1, 2)


def test_equal_models_and_too_few_differences_stay_undecided() -> None:
    same = mean_interval(np.zeros(100))
    assert (same.low, same.mean, same.high, same.decided) == (0, 0, 0, False)
    values = np.zeros(100)
    values[:9] = 0.5
    few = mean_interval(values)
    assert few.low > 0
    assert not few.decided
    values[:30] = 0.5
    assert mean_interval(values).decided
    assert not mean_interval(np.ones(5), np.zeros(5)).decided
    with pytest.raises(ValueError, match="no value"):
        mean_interval(np.zeros(0))
