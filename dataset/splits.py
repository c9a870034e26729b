"""Who trains and who tests: folds of images or of classes, and splits by whole classes.

Everything is counted and drawn with whole columns, no loop over rows or classes, so that a
million images of a hundred thousand classes take a second.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.data.class_choice import places_within
from visual_search.data.tables import image_names


def image_numbers(table: pd.DataFrame, file: Path, part: np.ndarray) -> np.ndarray:
    """Which image each row is of, `(rows,)`, int64, counted in the order of the rows.

    An image with several boxes has several rows. They must not be torn apart: what trains would be
    what is judged. `part` `(rows,)` is what of a split each row is in already.

    Raises:
        UserError: with both lines, for an image of two classes, or in two parts of a split.
    """
    names = image_names(table)
    images = pd.factorize(names.map(os.path.normpath))[0]
    first = np.unique(images, return_index=True)[1][images]
    for values, what in (
        (table["label"].to_numpy(), "of two classes"),
        (part, "in two parts of the split that the table has already"),
    ):
        wrong = np.flatnonzero(values != values[first])
        if len(wrong):
            row, other = int(wrong[0]), int(first[wrong[0]])
            raise UserError(
                f"{file} lines {table.index[other]} and {table.index[row]}: the image "
                f"{names.iloc[row]!r} is {what}, so that it would train and be judged: remove one "
                "of its rows, or mend it"
            )
    return images


def marked(table: pd.DataFrame, test: bool) -> pd.DataFrame:
    """A copy in which all rows test, or all train, whatever they did before.

    Queries and galleries that test stay what they are: they are scored as such.
    """
    marks: dict[str, pd.Series | str] = {"is_test": str(int(test))}
    if "evaluation_status" in table.columns:
        status = table["evaluation_status"]
        scored = status.str.strip().str.lower().isin(("query", "gallery"))
        marks["evaluation_status"] = status.where(scored, "test") if test else "train"
    return table.assign(**marks)


def stratified_folds(classes: np.ndarray, k: int, seed: int) -> np.ndarray:
    """fold 0..k-1 for each image of `classes` `(images,)`: every fold has its share of every class.

    The images are dealt out like cards, class after class, each class shuffled: the images of a
    class in two folds differ by one at most, and so do the images of two folds in all.

    Raises:
        UserError: when there are fewer images than folds.
    """
    _check_k(k, len(classes), "images")
    order = np.random.default_rng(seed).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    folds = np.empty(len(classes), dtype=np.int64)
    folds[order] = np.arange(len(classes)) % k
    return folds


def class_folds(classes: np.ndarray, k: int, seed: int) -> np.ndarray:
    """fold for each image, so that all images of a class are in the same fold.

    What is held out is then of classes that training never saw. From the largest class to the
    smallest, classes of one size shuffled, they are dealt to the folds there and back (0, 1, …,
    k-1, k-1, …, 1, 0, 0, 1, …), so that the folds have about as many images and, give or take one,
    as many classes. As :func:`stratified_folds`, for classes in place of images.
    """
    sizes = np.bincount(classes)
    _check_k(k, len(sizes), "classes")
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    there, place = np.divmod(np.arange(len(sizes)), k)
    fold_of_class = np.empty(len(sizes), dtype=np.int64)
    fold_of_class[order] = np.where(there % 2 == 0, place, k - 1 - place)
    return fold_of_class[classes]


def minmax_test_classes(sizes: np.ndarray, smallest: int, largest: int) -> np.ndarray:
    """Which of the classes of these sizes test, bool: those outside smallest to largest.

    Raises:
        UserError: when no class would train, or none test.
    """
    if smallest > largest:
        raise UserError(f"--min_n_samples {smallest} is above --max_n_samples {largest}")
    tests = (sizes < smallest) | (sizes > largest)
    if tests.all() or not tests.any():
        raise UserError(
            f"{'no' if tests.all() else 'every'} class has {smallest} to {largest} images, so that "
            f"{'none is left to train on' if tests.all() else 'none is left to test on'}: the "
            f"classes have {sizes.min()} to {sizes.max()}; choose --min_n_samples and "
            "--max_n_samples accordingly"
        )
    return tests


def frequency_test_classes(
    sizes: np.ndarray, test_ratio: float, min_classes: int, seed: int
) -> np.ndarray:
    """Which of the classes of these sizes test, bool: a random share of every frequency bin.

    A frequency bin is the classes of one size. Of a bin of n classes, test_ratio * n, rounded up,
    test, but never all; a bin of fewer than `min_classes` trains whole, and so does the bin of the
    classes of one image: there would be nothing to find for it.

    Raises:
        UserError: when no class would test.
    """
    images, bins, classes_of_bin = np.unique(sizes, return_inverse=True, return_counts=True)
    paired = images > 1
    # Rounded first, or 0.07 * 100 = 7.000000000000001 would become 8.
    wanted = np.ceil(np.round(test_ratio * classes_of_bin, 6)).astype(np.int64)
    enough = paired & (classes_of_bin >= min_classes)
    wanted = np.where(enough, np.minimum(wanted, classes_of_bin - 1), 0)
    if not wanted.any():
        raise UserError(
            f"the largest frequency bin of two or more images has "
            f"{classes_of_bin[paired].max(initial=0)} classes of one size, fewer than --min_freq "
            f"{min_classes} or only one, so that no class is left to test on; lower --min_freq, "
            "or choose --split_type minmax"
        )
    return places_within(bins, seed) < wanted[bins]


def _check_k(k: int, number: int, what: str) -> None:
    if number < k:
        raise UserError(f"--k is {k}, but there are only {number} {what} to spread over the folds")
