"""The ridge beside image–text runs: its choice on held-out products, and pooled figures."""

import numpy as np
import pytest

from visual_search.text.retrieval import BothWays, Relevance, Scores

pytest.importorskip("sklearn")

from benchmarks.text_ridge import DIRECTIONS, Data, Judged, best_ridge, mean_recall, ridge, rows_of


def data(products: range, noise: float = 0.5) -> Data:
    """Two images a product; images are a linear map of the texts, and noise."""
    every = np.random.default_rng(1).normal(size=(60, 6))
    texts, to_image = every[list(products)], np.random.default_rng(4).normal(size=(6, 12))
    images = np.repeat(texts, 2, axis=0) @ to_image
    images = images + noise * np.random.default_rng(3).normal(size=images.shape)
    count = len(products)
    relevance = Relevance(
        [str(p) for p in products],
        [np.array([2 * i, 2 * i + 1]) for i in range(count)],
        [np.array([i // 2]) for i in range(2 * count)],
    )
    useless = np.random.default_rng(2).normal(size=texts.shape)
    return Data(images, {"useful": texts, "useless": useless}, relevance)


def test_the_useful_features_are_chosen_and_generalise() -> None:
    spans = {"train": range(32), "held out": range(32, 40), "everything": range(40)}
    parts = {name: data(products) for name, products in (spans | {"test": range(40, 60)}).items()}
    choice, scores = best_ridge(parts, ["useless", "useful"], [0.1, 10.0])
    assert "texts by useful" in choice
    assert mean_recall(scores) > 0.9
    assert mean_recall(best_ridge(parts, ["useless"], [1.0])[1]) < 0.6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_of_images_or_texts_stand_for_weighted_pairs(direction: str) -> None:
    """One fit of all pairs, each weighed by one over its image's texts, ranks the same."""
    from sklearn.linear_model import Ridge

    train, test = data(range(20)), data(range(40, 60), noise=2.0)
    own = [
        np.array([i // 2, (i // 2 + 1) % 20]) if i % 3 else np.array([i // 2]) for i in range(40)
    ]
    train = Data(train.images, train.texts, Relevance(train.relevance.texts, [], own))
    image, text = np.array([(i, t) for i, texts in enumerate(own) for t in texts]).T
    weights = np.array([1 / len(own[i]) for i in image])
    sides = train.images[image], train.texts["useful"][text]
    inputs, targets = sides if direction == DIRECTIONS[0] else sides[::-1]
    model, mean = Ridge(alpha=0.3).fit(inputs, targets, weights), np.average(targets, 0, weights)
    new = test.texts["useful"], test.images
    asked, answers = new[::-1] if direction == DIRECTIONS[0] else new
    one, two = model.predict(asked) - mean, answers - mean
    cosines = (one / np.linalg.norm(one, axis=1)[:, None]) @ (two.T / np.linalg.norm(two, axis=1))
    images = cosines.T if direction == DIRECTIONS[0] else cosines
    found = ridge(train, test, "useful", direction, 0.3)
    assert found.image_ranks[:, 0].tolist() == images.argmax(axis=1).tolist()


def scores(first: list[int]) -> Scores:
    return {f"R@{k}": (np.array(first) < k).astype(float) for k in (1, 5, 10)}


def judged(
    texts: list[str], ridge: list[list[int]], run: list[list[int]], groups: list[int]
) -> Judged:
    def system(text: list[int], image: list[int]) -> BothWays:
        ways = {"text_to_photo": scores(text), "photo_to_text": scores(image)}
        return BothWays(ways, np.zeros((len(text), 1)))

    systems = {"ridge": system(*ridge), "run": system(*run)}
    return Judged(Relevance(texts, [], []), np.array(groups), systems, {"ridge": "alpha 1"})


def test_queries_of_all_parts_count_alike() -> None:
    parts = [
        judged(["a", "b"], [[0, 7], [0, 4, 20]], [[0, 0], [0, 4, 3]], [0, 0, 1]),
        judged(["b", "c"], [[12, 1], [9, 0]], [[0, 1], [0, 0]], [0, 1]),
    ]
    rows, notes = rows_of(parts)
    found = {(row.case, row.unit): (row.ours, row.peer_value) for row in rows}
    assert found["run, text to photo", "R@1"] == (3 / 4, 1 / 4)
    assert found["run, text to photo", "R@10"] == (1.0, 3 / 4)
    assert found["run, photo to text", "R@1"] == (pytest.approx(3 / 5), pytest.approx(2 / 5))
    # b is asked in both parts: it is drawn with both of its gains, or not at all.
    assert "run, text to photo R@1 over ridge: +0.000 … +1.000 (95 %)" in notes
