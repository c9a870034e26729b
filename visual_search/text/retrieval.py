"""Text → image and image → text retrieval: R@1, R@5, R@10 and mAP.

    table = read_pairs(Path("pairs.parquet"), "test")
    relevance = relevance_of(table)
    both = evaluate_retrieval(image_vectors, text_vectors, relevance)
    both.text_to_photo.recall(1), both.photo_to_text.mean_average_precision

The queries of one direction are the distinct texts of the table, of the other its images. An image
is relevant to a text when one of its product's images carries the text, so a name that two products
share is relevant to both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from visual_search.evaluation.metrics import average_precision_at_1000, hits_among
from visual_search.ranking.rank import MAX_PREDICTIONS
from visual_search.ranking.search import top_k
from visual_search.text.pairs import PairTable

RECALLS = (1, 5, 10)
"""Ranks of the recalls that are reported."""


@dataclass(frozen=True)
class Relevance:
    """Which texts and images belong together."""

    texts: list[str]
    """Distinct, in the order of their first image."""
    images_of: list[np.ndarray]
    """Of each text, the rows of the relevant images, ascending, int64."""
    texts_of: list[np.ndarray]
    """Of each image, the rows of the relevant texts, ascending, int64."""


def relevance_of(table: PairTable, column: str = "queries") -> Relevance:
    """The relevant answers in a table of pairs.

    Args:
        table: images with their texts and groups (products).
        column: queries, as typed, or texts, cleaned.
    """
    numbers: dict[str, int] = {}
    groups_of: list[set[int]] = []
    images_of_group: dict[int, list[int]] = {}
    for image, (texts, group) in enumerate(
        zip(table.rows_of(column), table.groups.tolist(), strict=True)
    ):
        images_of_group.setdefault(group, []).append(image)
        for text in texts:
            # Letters' case is no difference between two queries.
            number = numbers.setdefault(text.strip().lower(), len(numbers))
            if number == len(groups_of):
                groups_of.append(set())
            groups_of[number].add(group)
    images_of = [
        np.array(sorted(p for group in groups for p in images_of_group[group]), dtype=np.int64)
        for groups in groups_of
    ]
    texts_of: list[list[int]] = [[] for _ in range(len(table))]
    for number, images in enumerate(images_of):
        for image in images.tolist():
            texts_of[image].append(number)
    return Relevance(list(numbers), images_of, [np.array(t, dtype=np.int64) for t in texts_of])


@dataclass(frozen=True)
class RetrievalScores:
    """How one direction went, query by query."""

    first_relevant: np.ndarray
    """`(n,)`, int64: 0-based rank of the first relevant answer; the width where none is."""
    average_precisions: np.ndarray
    """`(n,)`, 0..1, over the first 1,000 answers."""

    def recall(self, k: int) -> float:
        """Share of the queries with a relevant answer among the first `k` (R@k), 0..1."""
        return float(self.hits(k).mean())

    def hits(self, k: int) -> np.ndarray:
        """`(n,)`, 1.0 where a relevant answer is among the first `k`."""
        return (self.first_relevant < k).astype(np.float64)

    @property
    def mean_average_precision(self) -> float:
        """mAP, 0..1."""
        return float(self.average_precisions.mean())

    def as_dict(self) -> dict[str, float]:
        """R@1, R@5, R@10 and mAP."""
        recalls = {f"R@{k}": self.recall(k) for k in RECALLS}
        return {**recalls, "mAP": self.mean_average_precision}


def score_rankings(ranks: np.ndarray, relevant: Sequence[np.ndarray]) -> RetrievalScores:
    """Score a ranking in which a query may have any set of relevant answers.

    `AP = sum over the relevant answers found of (relevant ones so far / rank)`, divided by the
    number of relevant answers that there are.

    Args:
        ranks: `(n, columns)`, int64, best first.
        relevant: of each query, the relevant answers.
    """
    hits = hits_among(ranks, relevant)
    first = np.full(len(ranks), ranks.shape[1], dtype=np.int64)
    np.minimum.at(first, hits.query, hits.rank - 1)
    # A query without a relevant answer has found none of them.
    return RetrievalScores(first, np.nan_to_num(average_precision_at_1000(hits)))


@dataclass(frozen=True)
class BothWays:
    """Scores of both directions, and the rankings they are of."""

    text_to_photo: RetrievalScores
    photo_to_text: RetrievalScores
    image_ranks: np.ndarray
    """`(texts, columns)`, int64: images, best first."""

    @property
    def mean_average_precision(self) -> float:
        """The mean of both directions' mAP: what training keeps the best model by."""
        both = (self.text_to_photo, self.photo_to_text)
        return sum(scores.mean_average_precision for scores in both) / 2

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The scores of both directions by name."""
        return {name: scores.as_dict() for name, scores in self.directions().items()}

    def directions(self) -> Mapping[str, RetrievalScores]:
        """`text_to_photo` and `photo_to_text`."""
        return {"text_to_photo": self.text_to_photo, "photo_to_text": self.photo_to_text}


def evaluate_retrieval(images: Tensor, texts: Tensor, relevance: Relevance) -> BothWays:
    """Rank images for each text and texts for each image, by inner product, and score both.

    Args:
        images: `(n_images, d)`, float, unit vectors.
        texts: `(n_texts, d)`, the same, in the order of `relevance.texts`.
        relevance: the relevant answers.
    """
    image_ranks = top_k(texts, images, MAX_PREDICTIONS)[1].cpu().numpy()
    text_ranks = top_k(images, texts, MAX_PREDICTIONS)[1].cpu().numpy()
    return BothWays(
        score_rankings(image_ranks, relevance.images_of),
        score_rankings(text_ranks, relevance.texts_of),
        image_ranks,
    )
