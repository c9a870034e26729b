"""Re-ranking steps that change embeddings and leave the ranking to the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_search.common.ranges import Amount, CountFrom1, Range, Share, ShareAbove0
from visual_search.model.projections import partly_whitening
from visual_search.ranking.search import top_k


@dataclass(frozen=True)
class Power:
    """Signed power of each coordinate: large ones weigh less.

    Perronnin et al., Improving the Fisher Kernel for Large-Scale Image Classification (ECCV
    2010), section 3.2.
    """

    exponent: ShareAbove0 = 0.5

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides, each coordinate raised, of unit length again."""
        raised = [F.normalize(x.sign() * x.abs() ** self.exponent) for x in (queries, gallery)]
        return raised[0], raised[1]


@dataclass(frozen=True)
class Center:
    """Move the origin to the mean of the embeddings.

    Jégou and Chum, Negative Evidences and Co-occurrences in Image Retrieval (ECCV 2012).
    """

    scope: Literal["joint", "sides", "gallery"] = "joint"
    """joint: the mean of all; sides: each side its own mean, which also takes out what phone
    photos and shop images differ in throughout; gallery: the gallery's mean for both."""

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides less the mean, of unit length again."""
        if self.scope == "joint":
            means = [_mean(torch.cat([queries, gallery]))] * 2
        else:
            means = [_mean(queries if self.scope == "sides" else gallery), _mean(gallery)]
        return _moved(queries, queries - means[0]), _moved(gallery, gallery - means[1])


@dataclass(frozen=True)
class ZScore:
    """Each coordinate less its mean, over its standard deviation, of both sides together."""

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides standardised, of unit length again."""
        both = torch.cat([queries, gallery])
        mean, deviation = _mean(both), both[_given(both)].std(dim=0, correction=0)
        deviation = deviation.clamp(min=1e-9)
        return (
            _moved(queries, (queries - mean) / deviation),
            _moved(gallery, (gallery - mean) / deviation),
        )


@dataclass(frozen=True)
class PCA:
    """Project to the principal directions of both sides together, partly whitened.

    Jégou and Chum (ECCV 2012). A centring should stand in front.
    """

    dimension: CountFrom1 = 256
    """Directions kept, at most the embedding's own number."""
    power: Share = 0.5
    """0 keeps the variances, 1 makes them equal."""

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides projected, `(n, min(dimension, width))`, of unit length again."""
        both = torch.cat([queries, gallery])
        covariance = (both.T @ both).double() / len(both)
        projection = partly_whitening(covariance, self.dimension, self.power)
        return F.normalize(queries @ projection), F.normalize(gallery @ projection)


@dataclass(frozen=True)
class DatabaseAugmentation:
    """Add to each gallery image its nearest ones, weighted by similarity to the power `alpha`.

    Database-side augmentation: Arandjelović and Zisserman (CVPR 2012); Gordo et al., End-to-end
    Learning of Deep Visual Representations for Image Retrieval (IJCV 2017), section 5.
    """

    neighbours: CountFrom1 = 3
    alpha: Amount = 1.0
    source: Literal["gallery", "queries"] = "gallery"
    """Where the neighbours are looked for: gallery or queries."""

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """The queries as they are, the gallery augmented."""
        pool = None if self.source == "gallery" else queries
        return queries, _expanded(gallery, pool, self.neighbours, self.alpha)


@dataclass(frozen=True)
class QueryExpansion:
    """Add to each query its nearest images, weighted by similarity to the power `alpha`.

    alpha 0: average query expansion (Chum et al., Total Recall, ICCV 2007); above: alpha query
    expansion (Radenović et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI
    2019, section 3.4).
    """

    neighbours: CountFrom1 = 3
    alpha: Amount = 3.0
    source: Literal["gallery", "queries"] = "gallery"
    """Where the neighbours are looked for: gallery or queries."""

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """The queries expanded, the gallery as it is."""
        pool = None if self.source == "queries" else gallery
        return _expanded(queries, pool, self.neighbours, self.alpha), gallery


@dataclass(frozen=True)
class SwappedDatabaseAugmentation:
    """Gallery images and queries both take in their nearest *queries*, then the joint z-score.

    The post-processing of a winning system of the 2023 challenge, whose author swapped the two
    sides of the usual database-side augmentation. Neighbours are those of the jointly standardised
    vectors; the sums are of the vectors themselves, with weights that fall from 1 for the image
    itself by `decades` powers of ten to the last neighbour.
    """

    gallery_neighbours: CountFrom1 = 9
    query_neighbours: CountFrom1 = 5
    decades: Amount = 2.0

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides augmented, then standardised."""
        standard_queries, standard_gallery = ZScore()(queries, gallery)
        _, of_gallery = top_k(standard_gallery, standard_queries, self.gallery_neighbours)
        _, of_queries = nearest_others(standard_queries, self.query_neighbours)
        # The z-score sees the sums themselves, not of unit length.
        return ZScore()(
            self._sum(queries, queries, of_queries, self.query_neighbours),
            self._sum(gallery, queries, of_gallery, self.gallery_neighbours),
        )

    def _sum(self, vectors: Tensor, pool: Tensor, indexes: Tensor, neighbours: int) -> Tensor:
        weights = torch.logspace(0, -self.decades, neighbours + 1, device=pool.device)[1:]
        added = weighted_sum(pool, indexes, weights[: indexes.shape[1]].expand(indexes.shape))
        return torch.where(_given(vectors)[:, None], vectors + added, 0.0)


@dataclass(frozen=True)
class TwoPassExpansion:
    """Expand a query by its nearest gallery image, rank again, and expand it by the nearest two.

    The query expansion of the 2023 challenge's first place. An image farther away than `cut` is
    replaced by the query itself. Distances are Euclidean between unit vectors here; theirs had
    sums of unit vectors, and took both passes' neighbours from the first ranking.
    """

    cut: Annotated[float, Range(0, 2)] = 0.8
    """Euclidean distance between unit vectors, 0..2."""

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """The queries expanded, the gallery as it is."""
        first = self._mixed(queries, queries, gallery, (0.5, 0.5))
        return self._mixed(queries, first, gallery, (0.4, 0.3, 0.3)), gallery

    def _mixed(
        self, queries: Tensor, asked: Tensor, gallery: Tensor, weights: tuple[float, ...]
    ) -> Tensor:
        similarities, indexes = top_k(asked, gallery, len(weights) - 1)
        distances = (2 - 2 * similarities).clamp(min=0).sqrt()
        mixed = weights[0] * queries
        for place, weight in enumerate(weights[1 : indexes.shape[1] + 1]):
            near = distances[:, place : place + 1] < self.cut
            mixed = mixed + weight * torch.where(near, gallery[indexes[:, place]], queries)
        return _moved(queries, mixed)


def nearest_others(vectors: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Each vector's nearest among the others: similarities and indexes, `(n, neighbours)`."""
    similarities, indexes = top_k(vectors, vectors, neighbours + 1)
    own = indexes == torch.arange(len(vectors), device=vectors.device)[:, None]
    # Behind many copies of itself a vector may not be in its own list: the last goes then.
    own[:, -1] |= ~own.any(dim=1)
    shape = len(vectors), indexes.shape[1] - 1
    return similarities[~own].view(shape), indexes[~own].view(shape)


def weighted_sum(pool: Tensor, indexes: Tensor, weights: Tensor) -> Tensor:
    """`sum over j of weights[i, j] * pool[indexes[i, j]]`; one neighbour of all at a time."""
    total = pool.new_zeros((len(indexes), pool.shape[1]))
    for place in range(indexes.shape[1]):
        total += weights[:, place : place + 1] * pool[indexes[:, place]]
    return total


def _expanded(vectors: Tensor, pool: Tensor | None, neighbours: int, alpha: float) -> Tensor:
    """Each vector plus its nearest in `pool`, or among the others where there is no pool."""
    if pool is None:
        pool = vectors
        similarities, indexes = nearest_others(vectors, neighbours)
    else:
        similarities, indexes = top_k(vectors, pool, neighbours)
    return _moved(
        vectors, vectors + weighted_sum(pool, indexes, similarities.clamp(min=0) ** alpha)
    )


def _given(vectors: Tensor) -> Tensor:
    """Which rows are embeddings, not the zeros that stand for a missing one."""
    return (vectors != 0).any(dim=1)


def _mean(vectors: Tensor) -> Tensor:
    given = vectors[_given(vectors)]
    return given.mean(dim=0) if len(given) else vectors.new_zeros(vectors.shape[1])


def _moved(before: Tensor, after: Tensor) -> Tensor:
    """`after` as unit vectors; rows that were zeros stay zeros."""
    return torch.where(_given(before)[:, None], F.normalize(after), 0.0)
