import numpy as np
import pytest

from benchmarks.universal import Pair, paired_interval


def pair(difference: np.ndarray, classes: np.ndarray) -> Pair:
    base = np.full(len(difference), 0.5)
    return Pair(base + difference, base, base, classes)


def test_a_difference_that_never_varies_has_no_interval() -> None:
    one = pair(np.full(12, 0.1), np.arange(12) % 3)
    other = pair(np.full(8, 0.3), np.arange(8) % 4)
    assert paired_interval([one, other]) == pytest.approx((0.2, 0.2, 0.2))


def test_classes_are_drawn_not_queries() -> None:
    rng = np.random.default_rng(1)
    classes = np.repeat(np.arange(40), 10)
    alike = np.repeat(rng.normal(0.0, 0.1, 40), 10)  # all queries of a class differ alike
    mean, low, high = paired_interval([pair(alike, classes)])
    spread = alike[::10].std() / np.sqrt(40)
    assert mean == pytest.approx(alike.mean())
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
