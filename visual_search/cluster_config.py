"""How texts are clustered; light to import, for the command line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ClusterConfig:
    """How texts are clustered.

    Attributes:
        ngram: words of an n-gram; shorter texts count as a whole.
        max_ngrams: the most frequent so many are clustered.
        encoder: of the n-grams; see :mod:`visual_search.sentence_encoders`.
        clusters: how many.
        linkage: ward, complete, average or single.
        connectivity: only n-grams that are among each other's so many nearest are joined, which
            needs far less memory; 0: any.
        neighbours: of a new text that vote on its cluster.
        hold_out: share of the n-grams that the vote is measured on.
        seed: of the hold-out, and of samples.
        scan: other numbers of clusters whose silhouette is reported.
    """

    ngram: int = 3
    max_ngrams: int = 20_000
    encoder: str = "use"
    clusters: int = 10
    linkage: str = "ward"
    connectivity: int = 0
    neighbours: int = 4
    hold_out: float = 0.1
    seed: int = 42
    scan: list[int] = field(default_factory=lambda: [2, 5, 10, 15, 20, 30, 50])
