"""The plain linear map between frozen photo and text features: what training has to beat.

It is made as strong as it can be: direction, text features and the ridge's strength are chosen on
training products that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from visual_search.text_retrieval import RECALLS, BothWays, Relevance, evaluate_retrieval

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 2, 9))
HELD_OUT_SHARE = 0.2
DIRECTIONS = ("photo to text", "text to photo")


@dataclass(frozen=True)
class RidgeData:
    """Photos with their texts' features, to fit or to judge."""

    photos: np.ndarray
    """`(n, p)`, float: unit vectors of the frozen visual tower."""
    texts: Mapping[str, np.ndarray]
    """By the features' name, `(m, t)`, float: of the distinct texts."""
    relevance: Relevance
    """The right answers between the n photos and the m texts."""


@dataclass(frozen=True)
class Ridge:
    """A fitted map, and how it was chosen."""

    features: str
    direction: str
    alpha: float
    validation: float
    """Mean recall on the held-out training products, 0..1."""
    scores: BothWays
    """On the data that was to be judged."""


def ridge_baseline(
    train: RidgeData, held_out: RidgeData, everything: RidgeData, test: RidgeData
) -> Ridge:
    """Choose the best ridge on `held_out`, fit it to `everything`, and judge it on `test`.

    Args:
        train: a part of the training products.
        held_out: the rest of them.
        everything: both.
        test: products never trained on.

    The choice is by the mean of R@1, R@5 and R@10 of both directions.
    """
    best = (-1.0, "", "", 0.0)
    for features in train.texts:
        for direction in DIRECTIONS:
            for alpha, scores in _judged(train, held_out, features, direction, ALPHAS).items():
                best = max(best, (mean_recall(scores), features, direction, alpha))
    validation, features, direction, alpha = best
    scores = _judged(everything, test, features, direction, [alpha])[alpha]
    return Ridge(features, direction, alpha, validation, scores)


def mean_recall(scores: BothWays) -> float:
    """The mean of R@1, R@5 and R@10 of both directions, 0..1."""
    recalls = [s.recall(k) for s in scores.directions().values() for k in RECALLS]
    return sum(recalls) / len(recalls)


def _judged(
    fitted_to: RidgeData,
    judged_on: RidgeData,
    features: str,
    direction: str,
    alphas: Sequence[float],
) -> dict[float, BothWays]:
    fitted, judged = in_their_span(fitted_to.texts[features], judged_on.texts[features])
    photos, texts, weights = _pairs(fitted_to, fitted)
    photo_mean = np.average(photos, axis=0, weights=weights)
    text_mean = np.average(texts, axis=0, weights=weights)
    photos, texts = photos - photo_mean, texts - text_mean
    new_photos = judged_on.photos - photo_mean
    new_texts = judged - text_mean
    found = {}
    if direction == "photo to text":
        for alpha, mapped in ridge_predictions(photos, texts, weights, new_photos, alphas).items():
            found[alpha] = _evaluated(mapped, new_texts, judged_on.relevance)
    else:
        for alpha, mapped in ridge_predictions(texts, photos, weights, new_texts, alphas).items():
            found[alpha] = _evaluated(new_photos, mapped, judged_on.relevance)
    return found


def in_their_span(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same rows in fewer numbers, with the same inner products among all of them.

    A few hundred texts span a few hundred dimensions of their n-grams' thousands; a ridge and a
    cosine are the same there.

    Args:
        one: `(n, d)`.
        two: `(m, d)`.

    Returns:
        `(n, r)` and `(m, r)`, r being at most `min(n + m, d)`.
    """
    left, singular, _ = _decomposition(np.concatenate([one, two]).astype(np.float64))
    rows = left * singular
    return rows[: len(one)], rows[len(one) :]


def _pairs(data: RidgeData, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row for each pair of a photo and one of its texts; each photo weighs 1 in all."""
    rows = [(p, t) for p, texts in enumerate(data.relevance.texts_of) for t in texts.tolist()]
    photos, texts = (np.array(column) for column in zip(*rows, strict=True))
    weights = 1.0 / np.bincount(photos)[photos]
    return data.photos[photos].astype(np.float64), features[texts], weights


def ridge_predictions(
    inputs: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    new: np.ndarray,
    alphas: Sequence[float],
) -> dict[float, np.ndarray]:
    """What ridge regression without intercept predicts for `new`, at each strength.

    Minimises `sum of weight * |target - W input|^2 + alpha |W|^2` (Hoerl and Kennard 1970), by
    one singular value decomposition for all strengths.

    Args:
        inputs: `(n, d)`.
        targets: `(n, e)`.
        weights: `(n,)`, above 0.
        new: `(m, d)`.
        alphas: strengths, above 0.

    Returns:
        `(m, e)` by strength.
    """
    root = np.sqrt(weights)[:, None]
    inputs, targets = inputs * root, targets * root
    left, singular, right = _decomposition(inputs)
    projected, rotated = left.T @ targets, new @ right.T
    return {alpha: (rotated * (singular / (singular**2 + alpha))) @ projected for alpha in alphas}


def _decomposition(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left vectors, singular values and right vectors, by the smaller of the two Gram matrices."""
    if len(inputs) >= inputs.shape[1]:
        values, vectors = np.linalg.eigh(inputs.T @ inputs)
        kept = values > values[-1] * 1e-10
        singular = np.sqrt(values[kept])
        return inputs @ vectors[:, kept] / singular, singular, vectors[:, kept].T
    values, vectors = np.linalg.eigh(inputs @ inputs.T)
    kept = values > values[-1] * 1e-10
    singular = np.sqrt(values[kept])
    return vectors[:, kept], singular, (vectors[:, kept].T @ inputs) / singular[:, None]


def _evaluated(photos: np.ndarray, texts: np.ndarray, relevance: Relevance) -> BothWays:
    unit = [
        torch.from_numpy(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
        for rows in (photos, texts)
    ]
    return evaluate_retrieval(unit[0].float(), unit[1].float(), relevance)
