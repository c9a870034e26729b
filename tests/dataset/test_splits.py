import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataset.splits import (
    class_folds,
    frequency_test_classes,
    minmax_test_classes,
    stratified_folds,
)
from tests.commands import refused

SEEDS = st.integers(0, 2**32 - 1)
CLASSES = st.lists(st.integers(0, 9), min_size=8, max_size=120).map(
    lambda numbers: np.unique(numbers, return_inverse=True)[1]
)


@given(classes=CLASSES, k=st.integers(2, 8), seed=SEEDS)
def test_every_fold_has_its_share_of_every_class(classes: np.ndarray, k: int, seed: int) -> None:
    folds = stratified_folds(classes, k, seed)
    assert set(folds.tolist()) == set(range(k))
    spread = [np.bincount(folds[classes == c], minlength=k) for c in np.unique(classes)]
    for counts in (*spread, np.bincount(folds, minlength=k)):
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(folds, stratified_folds(classes, k, seed))


@given(classes=CLASSES, k=st.integers(2, 4), seed=SEEDS)
def test_whole_classes_stay_together(classes: np.ndarray, k: int, seed: int) -> None:
    if len(np.unique(classes)) < k:
        refused("classes to spread", class_folds, classes, k, seed)
        return
    folds = class_folds(classes, k, seed)
    home = {c: set(folds[classes == c].tolist()) for c in np.unique(classes)}
    assert all(len(found) == 1 for found in home.values())
    classes_of_fold = Counter(found.pop() for found in home.values())
    assert max(classes_of_fold.values()) - min(classes_of_fold[f] for f in range(k)) <= 1
    # There and back: no fold is ahead of another by more than the largest class.
    images = np.bincount(folds, minlength=k)
    assert images.max() - images.min() <= np.bincount(classes).max()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=90).map(np.array),
    ratio=st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.99]),
    min_classes=st.integers(1, 20),
    seed=SEEDS,
)
def test_a_share_of_every_large_frequency_bin_tests(
    sizes: np.ndarray, ratio: float, min_classes: int, seed: int
) -> None:
    expected = {}
    for size, number in Counter(sizes.tolist()).items():
        share = min(math.ceil(round(ratio * number, 6)), number - 1)
        expected[size] = 0 if number < min_classes or size == 1 else share
    if not any(expected.values()):
        refused("lower --min_freq", frequency_test_classes, sizes, ratio, min_classes, seed)
        return
    tests = frequency_test_classes(sizes, ratio, min_classes, seed)
    found = Counter(sizes[tests].tolist())
    assert {size: found[size] for size in expected} == expected
    again = frequency_test_classes(sizes, ratio, min_classes, seed)
    np.testing.assert_array_equal(tests, again)


def test_shares_are_rounded_up_but_not_for_the_last_bit() -> None:
    assert math.ceil(0.07 * 100) == 8  # the trap
    assert frequency_test_classes(np.full(100, 4), 0.07, 10, 0).sum() == 7
    assert frequency_test_classes(np.full(71, 4), 0.1, 10, 0).sum() == 8


def test_impossible_splits_are_refused() -> None:
    refused("--k is 5, but there are only 3 images", stratified_folds, np.zeros(3, dtype=int), 5, 0)
    words = "bin of two or more images has 0 classes .* minmax"
    refused(words, frequency_test_classes, np.ones(500, dtype=int), 0.1, 10, 0)
    for low, high, words in (
        (30, 40, "no class has 30 to 40 images, so that none is left to train"),
        (2, 50, "every class has 2 to 50 images, so that none is left to test"),
        (5, 4, "--min_n_samples 5 is above --max_n_samples 4"),
    ):
        refused(words, minmax_test_classes, np.array([2, 3, 50]), low, high)
