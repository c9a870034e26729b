"""Text → image and image → text retrieval: R@1, R@5, R@10 and mAP.

    table = read_pairs(Path("pairs.parquet"), "test")
    both = evaluate_retrieval(image_vectors, text_vectors, relevance_of(table))
    both.as_dict()["text_to_photo"]["R@1"]

The queries of one direction are the distinct texts of the table, of the other its images. An image
is relevant to a text when one of its product's images carries the text, so a name that two products
share is relevant to both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from visual_search.data.values import in_small_letters
from visual_search.evaluation.metrics import METRICS, hits_among
from visual_search.ranking.rank import MAX_PREDICTIONS
from visual_search.ranking.search import top_k
from visual_search.text.pairs import PairTable

REPORTED = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "mAP": "mAP@1000"}
"""The metrics by the names that they have here."""

Scores = dict[str, np.ndarray]
"""By metric, `(n_queries,)`, 0..1."""


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
    """The relevant answers in a table of pairs, by queries, as typed, or texts, cleaned."""
    own = [in_small_letters(table.texts_of(image, column)) for image in range(len(table))]
    numbers, texts = pd.factorize(np.array([text for row in own for text in row], object))
    groups = np.repeat(table.groups, [len(row) for row in own])
    said = pd.DataFrame({"text": numbers, "group": groups}).drop_duplicates()
    shown = pd.DataFrame({"image": np.arange(len(table)), "group": table.groups})
    pairs = said.merge(shown, on="group")[["text", "image"]].drop_duplicates()

    def listed(of: str, answers: str, count: int) -> list[np.ndarray]:
        rows = pairs.sort_values([of, answers])
        ends = np.cumsum(np.bincount(rows[of], minlength=count))[:-1]
        return np.split(rows[answers].to_numpy(), ends)

    both = listed("text", "image", len(texts)), listed("image", "text", len(table))
    return Relevance(texts.tolist(), *both)


@dataclass(frozen=True)
class BothWays:
    """Scores of both directions, and the rankings of one."""

    scores: dict[str, Scores]
    """Of the directions `text_to_photo` and `photo_to_text`."""
    image_ranks: np.ndarray
    """`(texts, columns)`, int64: images, best first."""

    @property
    def mean_average_precision(self) -> float:
        """The mean of both directions' mAP: what training keeps the best model by."""
        return sum(scores["mAP"] for scores in self.as_dict().values()) / 2

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The means over the queries, by direction and metric."""
        return {
            way: {name: float(values.mean()) for name, values in scores.items()}
            for way, scores in self.scores.items()
        }


def evaluate_retrieval(images: Tensor, texts: Tensor, relevance: Relevance) -> BothWays:
    """Rank images for each text and texts for each image, by inner product, and score both.

    Args:
        images: `(n_images, d)`, float, unit vectors.
        texts: `(n_texts, d)`, the same, in the order of `relevance.texts`.
        relevance: the relevant answers.
    """
    scores, ranks = {}, {}
    for way, asked, answers, relevant in (
        ("text_to_photo", texts, images, relevance.images_of),
        ("photo_to_text", images, texts, relevance.texts_of),
    ):
        ranks[way] = top_k(asked, answers, MAX_PREDICTIONS)[1].cpu().numpy()
        hits = hits_among(ranks[way], relevant)
        scores[way] = {name: METRICS[metric](hits) for name, metric in REPORTED.items()}
    return BothWays(scores, ranks["text_to_photo"])
