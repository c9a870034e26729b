"""Groups of texts that mean alike: the frequent n-grams are clustered, any text joins its nearest.

    clusters, report = fit_clusters(grams, ClusterConfig())
    clusters.save(folder, config)
    TextClusters.load(folder).predict(["белый стол"])      # (1,), int64

The n-grams are embedded by a sentence encoder and grouped by agglomerative clustering; a k-nearest-
neighbours classifier on them carries the groups over to texts that were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import rel_entr
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph
from sklearn.preprocessing import normalize

from visual_search.common.errors import UserError
from visual_search.common.files import read_json, write_json, written_atomically
from visual_search.common.ranges import check_ranges
from visual_search.text.config import ClusterConfig
from visual_search.text.pairs import CLUSTER_FIELDS
from visual_search.text.sentence_encoders import SentenceEncoder, sentence_encoder

MODEL, FACTS = "clusters.npz", "clusters.json"
NAME_WORDS, EXAMPLES = 3, 10


@dataclass(frozen=True)
class TextClusters:
    """Embedded n-grams with their clusters, and the encoder they were embedded by."""

    encoder: SentenceEncoder
    """Of texts."""
    vectors: np.ndarray
    """Of the n-grams, `(m, dimension)`, float32, of length 1."""
    labels: np.ndarray
    """Cluster of each n-gram, `(m,)`, int64, 0..count-1."""
    names: list[str]
    """Of the clusters."""
    neighbours: int
    """That vote on a text's cluster."""

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return len(self.names)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The cluster of each text, `(n,)`, int64; texts are cleaned, as the clustered ones."""
        return self.predict_vectors(self.encoder.encode(texts))

    def predict_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """The cluster of each vector of the encoder's, `(n,)`, int64; of any length."""
        return np.asarray(self._votes.predict(normalize(vectors)), dtype=np.int64)

    @cached_property
    def _votes(self) -> KNeighborsClassifier:
        return _votes(self.vectors, self.labels, self.neighbours)

    def save(self, folder: Path, config: ClusterConfig) -> None:
        """Write numbers and text, nothing that is executed when it is read."""
        (folder / FACTS).unlink(missing_ok=True)  # and last again: never the names of others
        with written_atomically(folder / MODEL) as temporary, temporary.open("wb") as handle:
            np.savez(handle, vectors=self.vectors, labels=self.labels)
        facts = {"names": self.names, "neighbours": self.neighbours, "encoder": self.encoder.name}
        write_json(folder / FACTS, facts | {"config": asdict(config)})

    @classmethod
    def load(cls, folder: Path) -> TextClusters:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: when it is not there or damaged.
        """
        try:
            facts = read_json(folder / FACTS)
            with np.load(folder / MODEL, allow_pickle=False) as arrays:
                vectors, labels = arrays["vectors"], arrays["labels"]
            name, names, neighbours = facts["encoder"], facts["names"], int(facts["neighbours"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} has no readable clusters ({error}); make them with "
                "`python dataset/image_text/cluster_texts.py fit`"
            ) from error
        return cls(sentence_encoder(name), vectors, labels, names, neighbours)


def fit_clusters(
    grams: Sequence[tuple[str, int]], config: ClusterConfig
) -> tuple[TextClusters, dict[str, Any]]:
    """Cluster n-grams by Ward's linkage.

    Args:
        grams: n-grams and how often each stands in the texts, the most frequent first.
        config: the rules.

    Returns:
        The clusters, the largest first, and a report: `ngrams`, how many were clustered;
        `silhouette`, their mean (Rousseeuw 1987), -1..1, Euclidean distance; `accuracy` of the vote
        of the nearest on held-out n-grams, 0..1, None where there were none; and lists with an
        entry a cluster: `names`; `sizes`, its n-grams; `weights`, how often they stand in the
        texts; `silhouettes`, their mean; `examples`, the most frequent of them.

    Raises:
        UserError: for a number out of its range, and when there are fewer n-grams than clusters.
    """
    check_ranges(config)
    found = pd.DataFrame(grams[: config.max_ngrams], columns=["examples", "weights"])
    if config.clusters >= len(found):
        raise UserError(
            f"clusters is {config.clusters}; it must be less than the {len(found)} different "
            "n-grams there are"
        )
    encoder = sentence_encoder(config.encoder)
    vectors = encoder.encode(found["examples"].tolist())
    near: Any = None
    if config.connectivity:
        near = kneighbors_graph(vectors, min(config.connectivity, len(vectors) - 1))
        near = near + near.T
    labels = AgglomerativeClustering(config.clusters, connectivity=near).fit_predict(vectors)
    order = np.argsort(-np.bincount(labels), kind="stable")
    labels = np.argsort(order)[labels]
    found["silhouettes"] = silhouette_samples(vectors, labels).astype(float)
    names = _names(found["examples"].tolist(), found["weights"].to_numpy(), labels)
    clusters = found.assign(sizes=1).groupby(labels)
    table = clusters.agg({"sizes": "sum", "weights": "sum", "silhouettes": "mean"})
    table["examples"] = clusters["examples"].agg(lambda texts: texts[:EXAMPLES].tolist())
    report: dict[str, Any] = {
        "ngrams": len(found),
        "accuracy": _held_out_accuracy(vectors, labels, config),
        "silhouette": float(found["silhouettes"].mean()),
        "names": names,
        **{str(column): values.tolist() for column, values in table.items()},
    }
    return TextClusters(encoder, vectors, labels, names, config.neighbours), report


def _names(texts: Sequence[str], weights: np.ndarray, labels: np.ndarray) -> list[str]:
    """For each cluster the words with the largest part in its divergence from all texts."""
    counter = CountVectorizer(binary=True, lowercase=False, token_pattern=r"\S+")
    said = counter.fit_transform(texts)
    words = counter.get_feature_names_out()
    inside = np.stack([weights[labels == k] @ said[labels == k] for k in range(labels.max() + 1)])
    parts = rel_entr(inside / inside.sum(axis=1, keepdims=True), inside.sum(axis=0) / inside.sum())
    best = np.argsort(np.where(inside > 0, -parts, np.inf), axis=1, kind="stable")[:, :NAME_WORDS]
    return [
        ", ".join(words[k] for k in row if inside[number, k]) for number, row in enumerate(best)
    ]


def _held_out_accuracy(
    vectors: np.ndarray, labels: np.ndarray, config: ClusterConfig
) -> float | None:
    if round(config.hold_out * len(vectors)) < 1:
        return None
    known, asked, right, expected = train_test_split(
        vectors, labels, test_size=config.hold_out, random_state=config.seed
    )
    return float(_votes(known, right, config.neighbours).score(asked, expected))


def _votes(vectors: np.ndarray, labels: np.ndarray, neighbours: int) -> KNeighborsClassifier:
    """The vote of the nearest n-grams on the cluster of a text."""
    votes = KNeighborsClassifier(min(neighbours, len(vectors)), algorithm="brute")
    return votes.fit(vectors, labels)


def clustered(table: pa.Table, clusters: TextClusters) -> pa.Table:
    """The rows with the cluster of each query, and that of the mean of an image's embeddings."""
    texts = table["texts"].to_pylist()
    ends = np.cumsum([len(row) for row in texts])[:-1]
    vectors = clusters.encoder.encode([text for row in texts for text in row])
    of_queries = np.split(clusters.predict_vectors(vectors), ends)
    means = np.stack([rows.mean(axis=0) for rows in np.split(vectors, ends)])
    columns = ([row.tolist() for row in of_queries], clusters.predict_vectors(means).tolist())
    for field, column in zip(CLUSTER_FIELDS, columns, strict=True):
        table = table.append_column(pa.field(*field), pa.array(column, field[1]))
    return table
