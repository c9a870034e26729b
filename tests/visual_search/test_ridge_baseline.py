"""The ridge against scikit-learn's, and its choice on products that it has not seen."""

from __future__ import annotations

import numpy as np
import pytest

from visual_search.ridge_baseline import (
    RidgeData,
    RidgeParts,
    in_their_span,
    mean_recall,
    ridge_baselines,
    ridge_predictions,
)
from visual_search.text_retrieval import Relevance


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_predictions_are_scikit_learns(shape: tuple[int, int]) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=shape), rng.normal(size=(shape[0], 3))
    weights, new = rng.uniform(0.2, 2, shape[0]), rng.normal(size=(5, shape[1]))
    ours = ridge_predictions(inputs, targets, weights, new, [0.1, 10.0])
    for alpha, predicted in ours.items():
        model = linear.Ridge(alpha=alpha, fit_intercept=False)
        model.fit(inputs, targets, sample_weight=weights)
        np.testing.assert_allclose(predicted, model.predict(new), atol=1e-8)


def data(products: range, noise: float, seed: int) -> RidgeData:
    """Two photos a product; photos are a linear map of the texts, and noise."""
    rng = np.random.default_rng(1)
    every = rng.normal(size=(60, 6))
    texts, to_photo = every[list(products)], rng.normal(size=(6, 12))
    draw = np.random.default_rng(seed)
    photos = np.repeat(texts, 2, axis=0) @ to_photo
    photos = photos + noise * draw.normal(size=photos.shape)
    count = len(products)
    relevance = Relevance(
        [str(p) for p in products],
        [np.array([2 * i, 2 * i + 1]) for i in range(count)],
        [np.array([i // 2]) for i in range(2 * count)],
    )
    useless = np.random.default_rng(2).normal(size=texts.shape)
    return RidgeData(photos, {"useful": texts, "useless": useless}, relevance)


def test_the_useful_features_are_chosen_and_generalise() -> None:
    spans = (range(32), range(32, 40), range(40), range(40, 60))
    parts = RidgeParts(*(data(products, 0.5, 3) for products in spans))
    choices = {"free": ["useless", "useful"], "bound": ["useless"]}
    made = ridge_baselines(parts, choices)
    assert made["bound"].features == "useless"
    assert mean_recall(made["bound"].scores) < 0.6
    ridge = made["free"]
    assert ridge.features == "useful"
    assert mean_recall(ridge.scores) > 0.9
    assert 0 < ridge.validation <= 1


def test_the_span_keeps_inner_products() -> None:
    rng = np.random.default_rng(0)
    for width in (50, 5):
        one, two = rng.normal(size=(7, width)), rng.normal(size=(4, width))
        less, other = in_their_span(one, two)
        assert less.shape[1] == min(11, width)
        np.testing.assert_allclose(less @ other.T, one @ two.T, atol=1e-8)
        np.testing.assert_allclose(less @ less.T, one @ one.T, atol=1e-8)
