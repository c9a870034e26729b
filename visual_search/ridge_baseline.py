"""The plain linear map between frozen photo and text features: what training has to beat.

It is made as strong as it can be: direction, text features and the ridge's strength are chosen on
training products that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array

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


@dataclass(frozen=True)
class RidgeParts:
    """What ridges are chosen, fitted and judged on."""

    train: RidgeData
    """A part of the training products."""
    held_out: RidgeData
    """The rest of them."""
    everything: RidgeData
    """Both."""
    test: RidgeData
    """Products never trained on."""


def ridge_baselines(parts: RidgeParts, choices: Mapping[str, Sequence[str]]) -> dict[str, Ridge]:
    """Choose the best ridges on the held-out part, fit them to both, and judge them on the test.

    Args:
        parts: the data.
        choices: by the ridge's name, the text features that it may choose from.

    The choice is by the mean of R@1, R@5 and R@10 of both directions.
    """
    choosing = _Fits(parts.train, parts.held_out)
    judging = _Fits(parts.everything, parts.test)
    tried = [
        (mean_recall(scores), features, direction, alpha)
        for features in dict.fromkeys(name for names in choices.values() for name in names)
        for direction in DIRECTIONS
        for alpha, scores in choosing.judged(features, direction, ALPHAS).items()
    ]
    made = {}
    for name, allowed in choices.items():
        validation, features, direction, alpha = max(one for one in tried if one[1] in allowed)
        scores = judging.judged(features, direction, [alpha])[alpha]
        made[name] = Ridge(features, direction, alpha, validation, scores)
    return made


def mean_recall(scores: BothWays) -> float:
    """The mean of R@1, R@5 and R@10 of both directions, 0..1."""
    recalls = [s.recall(k) for s in scores.directions().values() for k in RECALLS]
    return sum(recalls) / len(recalls)


class _Fits:
    """Ridges fitted to one data set and judged on another; what several share is computed once."""

    def __init__(self, fitted_to: RidgeData, judged_on: RidgeData) -> None:
        self._fitted_to, self._judged_on = fitted_to, judged_on
        rows, self._mixture = _mixture(fitted_to.relevance)
        self._text_weights = self._mixture.sum(axis=0)
        photos = fitted_to.photos[rows].astype(np.float64)
        self._mean = photos.mean(axis=0)
        self._photos = photos - self._mean
        self._new_photos = judged_on.photos - self._mean
        self._by_photos: Decomposition | None = None
        self._spans: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def judged(
        self, features: str, direction: str, alphas: Sequence[float]
    ) -> dict[float, BothWays]:
        """The scores at each strength."""
        texts, new_texts = self._texts(features)
        relevance = self._judged_on.relevance
        if direction == DIRECTIONS[0]:
            alike = np.ones(len(self._photos))
            if self._by_photos is None:
                self._by_photos = decomposed(self._photos, alike)
            wanted = self._mixture @ texts
            found = predictions(self._by_photos, wanted, alike, self._new_photos, alphas)
            return {alpha: _evaluated(f, new_texts, relevance) for alpha, f in found.items()}
        weights = self._text_weights
        wanted = self._mixture.T @ self._photos / weights[:, None]
        found = predictions(decomposed(texts, weights), wanted, weights, new_texts, alphas)
        return {alpha: _evaluated(self._new_photos, f, relevance) for alpha, f in found.items()}

    def _texts(self, features: str) -> tuple[np.ndarray, np.ndarray]:
        """Of the pairs, and of the texts that are judged; both less the pairs' mean."""
        if features not in self._spans:
            fitted, judged = in_their_span(
                self._fitted_to.texts[features], self._judged_on.texts[features]
            )
            mean = np.average(fitted, axis=0, weights=self._text_weights)
            self._spans[features] = fitted - mean, judged - mean
        return self._spans[features]


def _mixture(relevance: Relevance) -> tuple[np.ndarray, csr_array]:
    """The photos that have texts, `(n,)`; and of each its texts, which weigh 1 in all, `(n, m)`.

    Pairs of a photo and a text, weighted so, are fitted as well by a row for each photo, whose
    target is the mean of its texts, or by one for each text, whose target is that of its photos:
    the squares around the mean are the same whatever is predicted.
    """
    counts = np.array([len(texts) for texts in relevance.texts_of])
    rows = np.flatnonzero(counts)
    counts = counts[rows]
    ends = np.concatenate([[0], np.cumsum(counts)])
    shares = np.repeat(1.0 / counts, counts)
    texts = np.concatenate(relevance.texts_of)
    return rows, csr_array((shares, texts, ends), shape=(len(rows), len(relevance.texts)))


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
    return predictions(decomposed(inputs, weights), targets, weights, new, alphas)


Decomposition = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Left vectors, singular values and right vectors."""


def decomposed(inputs: np.ndarray, weights: np.ndarray) -> Decomposition:
    """The weighted inputs `(n, d)`, for :func:`predictions`."""
    return _decomposition(inputs * np.sqrt(weights)[:, None])


def predictions(
    inputs: Decomposition,
    targets: np.ndarray,
    weights: np.ndarray,
    new: np.ndarray,
    alphas: Sequence[float],
) -> dict[float, np.ndarray]:
    """As :func:`ridge_predictions`, from inputs that are decomposed already."""
    left, singular, right = (torch.from_numpy(part) for part in inputs)
    projected = left.T @ torch.from_numpy(targets * np.sqrt(weights)[:, None])
    rotated = torch.from_numpy(np.asarray(new, dtype=np.float64)) @ right.T
    return {
        alpha: ((rotated * (singular / (singular**2 + alpha))) @ projected).numpy()
        for alpha in alphas
    }


def _decomposition(inputs: np.ndarray) -> Decomposition:
    """Left vectors, singular values and right vectors, by the smaller of the two Gram matrices."""
    rows = torch.from_numpy(np.ascontiguousarray(inputs))
    tall = len(rows) >= rows.shape[1]
    values, vectors = torch.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    kept = values > values[-1] * 1e-10
    singular, vectors = values[kept].sqrt(), vectors[:, kept]
    if tall:
        left, right = rows @ vectors / singular, vectors.T
    else:
        left, right = vectors, (vectors.T @ rows) / singular[:, None]
    return left.numpy(), singular.numpy(), right.numpy()


def _evaluated(photos: np.ndarray, texts: np.ndarray, relevance: Relevance) -> BothWays:
    unit = [
        torch.from_numpy(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
        for rows in (photos, texts)
    ]
    return evaluate_retrieval(unit[0].float(), unit[1].float(), relevance)
