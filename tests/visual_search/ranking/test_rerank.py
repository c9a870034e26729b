from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pytest
import torch

from tests.commands import refused
from visual_search.ranking.rerank import STEPS, describe_steps, format_steps, parse_steps, rank
from visual_search.ranking.rerank_steps import (
    PCA,
    Center,
    DatabaseAugmentation,
    Power,
    QueryExpansion,
    SwappedDatabaseAugmentation,
    TwoPassExpansion,
    ZScore,
    nearest_others,
)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.fixture
def sides() -> tuple[np.ndarray, np.ndarray]:
    """12 queries and 20 gallery photos of five products, 8-d, unit vectors, float64."""
    rng = np.random.default_rng(3)
    centers = rng.normal(size=(5, 8))
    made = [centers[rng.integers(0, 5, n)] + 0.7 * rng.normal(size=(n, 8)) for n in (12, 20)]
    return np.array([unit(v) for v in made[0]]), np.array([unit(v) for v in made[1]])


def apply(step: Any, sides: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    queries, gallery = step(*(torch.from_numpy(side).float() for side in sides))
    return queries.numpy(), gallery.numpy()


def nearest(vector: np.ndarray, pool: np.ndarray, count: int, but: int = -1) -> list[int]:
    order = sorted((i for i in range(len(pool)) if i != but), key=lambda i: -(pool[i] @ vector))
    return order[:count]


def standardised(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([queries, gallery])
    mean, deviation = both.mean(axis=0), both.std(axis=0)
    made = [np.array([unit((v - mean) / deviation) for v in side]) for side in (queries, gallery)]
    return made[0], made[1]


def test_no_steps_is_the_plain_search(sides: tuple[np.ndarray, np.ndarray]) -> None:
    queries, gallery = (torch.from_numpy(side).float() for side in sides)
    expected = np.argsort(-(sides[0] @ sides[1].T), axis=1)[:, :7]
    np.testing.assert_array_equal(rank(queries, gallery, (), 7).numpy(), expected)


def test_power(sides: tuple[np.ndarray, np.ndarray]) -> None:
    queries, _ = apply(Power(0.5), sides)
    expected = [unit(np.sign(v) * np.sqrt(np.abs(v))) for v in sides[0]]
    np.testing.assert_allclose(queries, expected, atol=1e-5)


@pytest.mark.parametrize("scope", ["joint", "sides", "gallery"])
def test_center(
    sides: tuple[np.ndarray, np.ndarray], scope: Literal["joint", "sides", "gallery"]
) -> None:
    queries, gallery = sides
    means = {
        "joint": [np.concatenate(sides).mean(axis=0)] * 2,
        "sides": [queries.mean(axis=0), gallery.mean(axis=0)],
        "gallery": [gallery.mean(axis=0)] * 2,
    }[scope]
    made = apply(Center(scope), sides)
    for side, mean, got in zip(sides, means, made, strict=True):
        np.testing.assert_allclose(got, [unit(v - mean) for v in side], atol=1e-5)


def test_zscore(sides: tuple[np.ndarray, np.ndarray]) -> None:
    for got, expected in zip(apply(ZScore(), sides), standardised(*sides), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_full_whitening_makes_the_variances_equal(sides: tuple[np.ndarray, np.ndarray]) -> None:
    """Cosines of whitened vectors are Mahalanobis inner products: another way to the same."""
    queries, gallery = apply(PCA(dimension=8, power=1.0), sides)
    both = np.concatenate(sides)
    inverse = np.linalg.inv(both.T @ both)
    for i in range(3):
        for j in range(3):
            a, b = sides[0][i], sides[1][j]
            expected = a @ inverse @ b / np.sqrt((a @ inverse @ a) * (b @ inverse @ b))
            assert queries[i] @ gallery[j] == pytest.approx(expected, abs=1e-4)


def test_pca_without_whitening_and_all_directions_changes_no_cosine(
    sides: tuple[np.ndarray, np.ndarray],
) -> None:
    queries, gallery = apply(PCA(dimension=100, power=0.0), sides)
    np.testing.assert_allclose(queries @ gallery.T, sides[0] @ sides[1].T, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "side"),
    [
        (DatabaseAugmentation(3, 2.0, "gallery"), "gallery"),
        (DatabaseAugmentation(3, 2.0, "queries"), "gallery"),
        (QueryExpansion(4, 0.0, "gallery"), "queries"),
        (QueryExpansion(4, 3.0, "queries"), "queries"),
    ],
)
def test_one_side_takes_its_nearest_in(
    sides: tuple[np.ndarray, np.ndarray], step: DatabaseAugmentation | QueryExpansion, side: str
) -> None:
    names = ("queries", "gallery")
    before = dict(zip(names, sides, strict=True))
    after = dict(zip(names, apply(step, sides), strict=True))
    (other,) = set(names) - {side}
    np.testing.assert_allclose(after[other], before[other], atol=1e-6)
    pool = before[step.source]
    for i, vector in enumerate(before[side]):
        near = nearest(vector, pool, step.neighbours, but=i if step.source == side else -1)
        total = vector + sum(max(pool[j] @ vector, 0.0) ** step.alpha * pool[j] for j in near)
        np.testing.assert_allclose(after[side][i], unit(total), atol=1e-5)


def test_swapped_database_augmentation(sides: tuple[np.ndarray, np.ndarray]) -> None:
    queries, gallery = sides
    near_queries, near_gallery = standardised(queries, gallery)

    def summed(side: np.ndarray, standard: np.ndarray, count: int, own: bool) -> np.ndarray:
        weights = [10 ** (-2 * j / count) for j in range(1, count + 1)]
        rows = []
        for i, vector in enumerate(side):
            near = nearest(standard[i], near_queries, count, but=i if own else -1)
            added = (w * queries[j] for w, j in zip(weights, near, strict=True))
            rows.append(vector + sum(added))
        return np.array(rows)

    new_gallery = summed(gallery, near_gallery, 9, own=False)
    new_queries = summed(queries, near_queries, 5, own=True)
    expected = standardised(new_queries, new_gallery)
    made = apply(SwappedDatabaseAugmentation(), sides)
    for got, wanted in zip(made, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("cut", [0.6, 0.9, 2.0])
def test_two_pass_expansion(sides: tuple[np.ndarray, np.ndarray], cut: float) -> None:
    queries, gallery = sides
    made, _ = apply(TwoPassExpansion(cut), sides)
    for i, query in enumerate(queries):

        def near_or_itself(
            asked: np.ndarray, count: int, query: np.ndarray = query
        ) -> list[np.ndarray]:
            found = [gallery[j] for j in nearest(asked, gallery, count)]
            return [v if np.linalg.norm(v - asked) < cut else query for v in found]

        first = unit(0.5 * query + 0.5 * near_or_itself(query, 1)[0])
        one, two = near_or_itself(first, 2)
        np.testing.assert_allclose(made[i], unit(0.4 * query + 0.3 * one + 0.3 * two), atol=1e-5)


ALL: list[dict[str, Any]] = [
    {"name": "power", "exponent": 0.7},
    {"name": "center", "scope": "sides"},
    {"name": "zscore"},
    {"name": "pca", "dimension": 6, "power": 1},
    {"name": "dba", "neighbours": 2, "alpha": 0.5, "source": "queries"},
    {"name": "query_expansion", "neighbours": 1, "alpha": 3.0, "source": "gallery"},
    {"name": "swapped_dba", "gallery_neighbours": 2, "query_neighbours": 3, "decades": 1.5},
    {"name": "two_pass_expansion", "cut": 0.9},
    {"name": "k_reciprocal", "k1": 5, "k2": 2, "weight": 0.4},
]


def test_photos_without_an_embedding_stay_zero_and_spoil_nothing(
    sides: tuple[np.ndarray, np.ndarray],
) -> None:
    queries, gallery = (torch.from_numpy(side).float() for side in sides)
    queries[4], gallery[7] = 0, 0
    for step in (*parse_steps(ALL[:-1], "test"), TwoPassExpansion(cut=2.0)):
        new_queries, new_gallery = step(queries, gallery)  # type: ignore[operator]
        assert new_queries.isfinite().all(), step
        assert new_gallery.isfinite().all(), step
        assert not new_queries[4].any(), step
        assert not new_gallery[7].any(), step
    ranks = rank(queries, gallery, parse_steps(ALL, "test"), 1000)
    assert all(sorted(row) == list(range(20)) for row in ranks.tolist())


@pytest.mark.parametrize("n_gallery", [1, 2, 3])
def test_sides_smaller_than_any_number_of_neighbours(n_gallery: int) -> None:
    gallery = torch.nn.functional.normalize(torch.arange(1.0, 1 + 4 * n_gallery).view(-1, 4).cos())
    for step in ALL:
        ranks = rank(gallery[:1].clone(), gallery, parse_steps([step], "test"), 1000)
        assert sorted(ranks[0].tolist()) == list(range(n_gallery)), step


def test_nearest_others_among_many_copies() -> None:
    _, indexes = nearest_others(torch.ones(5, 2), 2)
    assert indexes.shape == (5, 2)
    assert all(row not in found for row, found in enumerate(indexes.tolist()))


def test_steps_survive_being_written_and_read() -> None:
    steps = parse_steps(ALL, "test")
    assert parse_steps(describe_steps(steps), "test") == steps
    assert describe_steps(steps)[3] == {"name": "pca", "dimension": 6, "power": 1}
    assert format_steps(steps[:2]) == "power(exponent=0.7) + center(scope=sides)"
    assert format_steps(()) == "plain cosine"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "center"}, r"m\.json: rerank must be a list"),
        (["center"], r"m\.json: rerank\[0\] must look like"),
        ([{"scope": "joint"}], r"rerank\[0\] must look like"),
        ([{"name": "centre"}], r"rerank\[0\]\.name is 'centre'; it can be power, center"),
        ([{"name": ["center"]}], r"rerank\[0\]\.name is \['center'\]"),
        ([{"name": "center", "scop": 1}], r"rerank\[0\]\.scop is an unknown key; known: scope"),
        ([{"name": "zscore", "a": 1}], r"rerank\[0\]\.a is an unknown key; known: none"),
        ([{"name": "dba", "neighbours": 2.5}], r"neighbours is 2\.5, not int"),
        ([{"name": "dba", "neighbours": True}], r"neighbours is True, not int"),
        ([{"name": "dba", "neighbours": 0}], r"rerank\[0\]\.neighbours is 0; it must be 1 or more"),
        (
            [{"name": "k_reciprocal", "k1": 3, "k2": 5}],
            r"rerank\[0\]\.k2 is 5; it can be k1 \+ 1, 4, at the most",
        ),
        ([{"name": "center", "scope": "both"}], r"scope is 'both'; it can be joint"),
        ([{"name": "k_reciprocal"}, {"name": "zscore"}], r"rerank\[0\]: k_reciprocal must be"),
    ],
)
def test_what_is_no_step_is_refused_with_its_place(values: Any, message: str) -> None:
    refused(message, parse_steps, values, "m.json: rerank")


@pytest.mark.parametrize("name", STEPS)
def test_no_number_of_a_step_is_below_0(name: str) -> None:
    for key, default in asdict(STEPS[name]()).items():
        if not isinstance(default, str):
            words = rf"rerank\[0\]\.{key} is -1; it must be (0|1|above 0)"
            refused(words, parse_steps, [{"name": name, key: -1}], "rerank")
