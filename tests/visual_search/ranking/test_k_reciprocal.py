import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search.ranking.k_reciprocal import KReciprocal


def dense_scores(
    queries: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float
) -> np.ndarray:
    """The paper (Zhong et al. 2017) step by step, with sets, loops and dense matrices."""
    everyone = np.concatenate([queries, gallery]).astype(np.float64)
    n = len(everyone)
    distance = 1 - everyone @ everyone.T
    ranked = [sorted(range(n), key=lambda j: (j != i, distance[i, j], j)) for i in range(n)]

    def reciprocal(i: int, k: int) -> set[int]:  # equation 2; a photo is its own neighbour
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    encoding = np.zeros((n, n))
    for i in range(n):
        members = reciprocal(i, k1)
        expanded = set(members)
        for candidate in members:  # equation 3
            theirs = reciprocal(candidate, round(k1 / 2))
            if len(theirs & members) > 2 / 3 * len(theirs):
                expanded |= theirs
        for j in expanded:  # equation 7
            encoding[i, j] = np.exp(-distance[i, j])
        encoding[i] /= encoding[i].sum()
    averaged = np.array([encoding[ranked[i][:k2]].mean(axis=0) for i in range(n)])  # equation 11
    scores = np.zeros((len(queries), len(gallery)))
    for i in range(len(queries)):
        for j in range(len(gallery)):
            one, other = averaged[i], averaged[len(queries) + j]
            jaccard = 1 - np.minimum(one, other).sum() / np.maximum(one, other).sum()
            scores[i, j] = (1 - weight) * (1 - jaccard) + weight * (queries[i] @ gallery[j])
    return scores


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    k1=st.integers(1, 9),
    k2=st.integers(1, 4),
    weight=st.floats(0, 1),
    block=st.sampled_from([1, 60, 1 << 24]),
)
def test_the_sparse_way_is_the_papers(
    seed: int, k1: int, k2: int, weight: float, block: int
) -> None:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(5, 6))
    sides = []
    for count in (11, 14):
        vectors = centers[rng.integers(0, 5, count)] + 0.5 * rng.normal(size=(count, 6))
        sides.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    k2 = min(k2, k1 + 1)
    step = KReciprocal(k1, k2, weight)
    ranks = step.rank(torch.from_numpy(sides[0]), torch.from_numpy(sides[1]), 10, block).numpy()
    scores = dense_scores(sides[0], sides[1], k1, k2, weight)
    in_order = np.take_along_axis(scores, ranks, axis=1)
    best = -np.sort(-scores, axis=1)[:, :10]
    # The same scores at every place: photos of equal score may only change places.
    np.testing.assert_allclose(in_order, best, atol=1e-5)
    assert all(len(set(row)) == 10 for row in ranks.tolist())


def test_few_photos_and_many_neighbours() -> None:
    both = torch.eye(3)
    ranks = KReciprocal(k1=20, k2=6).rank(both[:2], both, 1000)
    assert ranks.tolist() == [[0, 1, 2], [1, 0, 2]]
