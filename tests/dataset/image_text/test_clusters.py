"""Clusters of texts, against scipy's tree and a naive vote."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score, silhouette_score

from dataset.image_text.clusters import TextClusters, fit_clusters
from tests.commands import refused
from tests.kills import killed_at_each_change
from visual_search.common.errors import UserError
from visual_search.text.config import ClusterConfig

THINGS = [
    *["стол", "стул", "кресло", "диван", "шкаф", "кровать", "табурет", "комод"],
    *["платье", "юбка", "рубашка", "брюки", "куртка", "пальто", "свитер", "футболка"],
    *["яблоко", "хлеб", "сыр", "молоко", "суп", "колбаса", "торт", "картофель"],
]
GRAMS = [
    (f"{colour} {thing}", 10 - place)
    for place, colour in enumerate(["белый", "новый", "большой"])
    for thing in THINGS
]
CONFIG = ClusterConfig(clusters=3)


@pytest.fixture(scope="module")
def both() -> tuple[TextClusters, dict[str, Any]]:
    return fit_clusters(GRAMS, CONFIG)


@pytest.fixture(scope="module")
def fitted(both: tuple[TextClusters, dict[str, Any]]) -> TextClusters:
    return both[0]


def test_clusters_are_those_of_the_ward_tree(fitted: TextClusters) -> None:
    tree = linkage(fitted.vectors.astype(np.float64), "ward")
    expected = fcluster(tree, 3, "maxclust")
    assert adjusted_rand_score(expected, fitted.labels) == 1.0
    assert (np.diff(np.bincount(fitted.labels)) <= 0).all()
    near, report = fit_clusters(GRAMS, replace(CONFIG, connectivity=10, max_ngrams=60))
    assert adjusted_rand_score(near.labels, fitted.labels[:60]) > 0.5
    assert report["ngrams"] == len(near.vectors) == 60


def test_the_report_is_about_these_clusters(both: tuple[TextClusters, dict[str, Any]]) -> None:
    clusters, report = both
    assert report["sizes"] == np.bincount(clusters.labels).tolist()
    assert sum(report["weights"]) == sum(count for _, count in GRAMS)
    expected = silhouette_score(clusters.vectors, clusters.labels)
    assert report["silhouette"] == pytest.approx(expected, abs=1e-6)
    assert report["accuracy"] > 0.5
    for name, examples in zip(clusters.names, report["examples"], strict=True):
        words = {word for text in examples for word in text.split()}
        assert set(name.split(", ")) & words


def test_a_new_text_goes_where_most_of_its_neighbours_are(fitted: TextClusters) -> None:
    texts = ["ночная сорочка", "dining table", "cheese", "старый диван", "белый хлеб"]
    vectors = fitted.encoder.encode(texts)
    found = fitted.predict(texts)
    for row, vector in enumerate(vectors):
        nearest = np.argsort(-(fitted.vectors @ vector))[: CONFIG.neighbours]
        votes = np.bincount(fitted.labels[nearest], minlength=3)
        assert votes[found[row]] == votes.max()
    np.testing.assert_array_equal(fitted.predict_vectors(7 * vectors), found)


def test_clusters_killed_at_any_moment_have_no_names_of_others(
    tmp_path: Path, fitted: TextClusters
) -> None:
    refused("has no readable clusters", TextClusters.load, tmp_path)
    old = replace(fitted, names=["old"])
    new = replace(fitted, labels=fitted.labels + 1, names=["new"])
    old.save(tmp_path, CONFIG)
    for _ in killed_at_each_change(lambda: new.save(tmp_path, CONFIG)):
        try:
            found = TextClusters.load(tmp_path)
        except UserError:
            continue
        assert found.names == (["new"] if found.labels.min() else ["old"])
    again, texts = TextClusters.load(tmp_path), ["белый стол", "сыр", "юбка", "desk"]
    assert again.names == ["new"]
    np.testing.assert_array_equal(again.predict(texts), new.predict(texts))
    (tmp_path / "clusters.json").write_text("{}")
    refused("has no readable clusters", TextClusters.load, tmp_path)


@pytest.mark.parametrize(
    ("clusters", "words"), [(3, "less than the 3 different n-grams"), (1, "2 or more")]
)
def test_more_clusters_than_texts_are_refused(clusters: int, words: str) -> None:
    message = f"clusters is {clusters}; it must be {words}"
    refused(message, fit_clusters, GRAMS[:3], replace(CONFIG, clusters=clusters))
