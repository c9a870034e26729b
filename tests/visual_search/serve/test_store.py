"""The index: the same answers as the exact search of the kit, changes whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import refused
from tests.visual_search.serve.conftest import new_database
from visual_search.ranking.search import top_k
from visual_search.serve.connections import Database
from visual_search.serve.indexing import measured_recall
from visual_search.serve.records import (
    Filters,
    IndexedImage,
    IndexedModel,
    Product,
    StaleModelError,
)
from visual_search.serve.store import Store

DIMENSION = 24


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Vectors of length 1, in steps of half precision."""
    rows = rng.standard_normal((*shape, DIMENSION)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)


def product(number: int, vectors: np.ndarray, model: IndexedModel) -> Product:
    return Product(
        id=f"p{number:05}",
        title=f"t{number}",
        category=f"c{number % 5}",
        price=number % 97,
        in_stock=number % 3 == 0,
        attributes={"size": number % 4, "tags": [number % 2]},
        images=[
            IndexedImage(f"/shop/{number}_{place}.jpg", None, "1", vectors={model.id: vector})
            for place, vector in enumerate(vectors)
        ],
    )


@pytest.fixture
def model(store: Store) -> IndexedModel:
    return store.add_model("runs/a", "a", DIMENSION)


class Filled:
    """An index, and the same as arrays."""

    def __init__(self, address: str, products: int) -> None:
        rng = np.random.default_rng(3)
        self.store = Store(address)
        self.model = self.store.add_model("runs/a", "a", DIMENSION)
        self.vectors = unit(rng, products, 2)
        self.store.put(
            [product(n, rows, self.model) for n, rows in enumerate(self.vectors)], [self.model.id]
        )
        self.images, self.owners, matrix = self.store.vectors(self.model)
        assert np.array_equal(matrix, self.vectors.reshape(-1, DIMENSION))


@pytest.fixture(scope="module")
def filled(server: str) -> Iterator[Filled]:
    made = Filled(new_database(server), 700)
    yield made
    made.store.close()


@pytest.mark.parametrize("queries", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_first_hundred_are_those_of_the_exact_search(filled: Filled, queries: int) -> None:
    rng = np.random.default_rng(queries)
    matrix = torch.from_numpy(filled.vectors.reshape(-1, DIMENSION)).float()
    for _ in range(queries):
        query = unit(rng).astype(np.float32)
        hits = filled.store.search(filled.model, query, 100, by_product=False)
        scores, found = np.array([hit.score for hit in hits]), [hit.image for hit in hits]
        expected, rows = top_k(torch.from_numpy(query)[None], matrix, 100)
        assert np.allclose(scores, expected[0], atol=1e-5)
        right = filled.images[rows[0].numpy()]
        # Sums of another order differ by 1e-7: neighbours that near may change places.
        for place in np.flatnonzero(np.array(found) != right):
            near = np.flatnonzero(np.abs(scores - scores[place]) < 1e-6)
            assert len(near) > 1 or place == len(found) - 1


def test_each_product_once_with_its_best_image(filled: Filled) -> None:
    query = filled.vectors[7, 1].astype(np.float32)
    hits = filled.store.search(filled.model, query, 50)
    best = (filled.vectors.astype(np.float32) @ query).max(axis=1)
    order = np.argsort(-best, kind="stable")[:50]
    assert [hit.product["id"] for hit in hits] == [f"p{number:05}" for number in order]
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert hits[0].product == product(7, filled.vectors[7], filled.model).facts()


def test_the_approximate_search_says_what_it_loses_and_keeps_filters(filled: Filled) -> None:
    filled.store.make_approximate(filled.model, True)
    approximate = filled.store.model(filled.model.id)
    try:
        words = measured_recall(filled.store, approximate)
        share = float(words.split("finds ")[1].split("%")[0])
        assert 80 < share <= 100
        rare = Filters(price_max=0.0)
        hits = filled.store.search(approximate, filled.vectors[0, 0], 5, rare)
        assert len(hits) == 5
        assert all(hit.product["price"] == 0 for hit in hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    finally:
        filled.store.make_approximate(filled.model, False)


def test_copies_are_found_by_their_number(store: Store, model: IndexedModel) -> None:
    shown = unit(np.random.default_rng(0))
    copies = [product(n, shown[None], model) for n in range(90)]
    store.put(copies, [model.id])
    # Written again, the first ones lie behind the others on the disk.
    store.rows("UPDATE embeddings SET vector = vector WHERE image <= 50")
    for by_product in (True, False):
        found = store.search(model, shown, 20, by_product=by_product)
        assert [hit.image for hit in found] == list(range(1, 21))


def test_a_product_of_many_images_leaves_room_for_others(store: Store, model: IndexedModel) -> None:
    rng = np.random.default_rng(0)
    query = unit(rng)
    near = np.repeat(query[None], 300, axis=0)
    store.put([product(0, near, model), product(1, unit(rng, 1), model)], [model.id])
    assert [hit.product["id"] for hit in store.search(model, query, 2)] == ["p00000", "p00001"]


def test_a_replaced_product_keeps_the_ids_of_images_that_stay(
    store: Store, model: IndexedModel
) -> None:
    rng = np.random.default_rng(1)
    first = product(0, unit(rng, 3), model)
    store.put([first], [model.id])
    before = store.products(["p00000"])["p00000"].images[1]
    kept = replace(first.images[1], vectors={})  # unchanged: its embedding stays
    store.put([first.model_copy(update={"title": "new", "images": [kept]})], [model.id])
    found = store.products(["p00000"])["p00000"]
    assert found.title == "new"
    assert found.images == [before]
    assert store.vector_of(model, before.id) is not None
    assert len(store.missing(model)) == 0


def test_a_changed_image_loses_what_other_models_made_of_it(
    store: Store, model: IndexedModel
) -> None:
    rng = np.random.default_rng(1)
    shown = product(0, unit(rng, 1), model)
    store.put([shown], [model.id])
    other = store.add_model("runs/b", "b", DIMENSION)
    (image,) = store.missing(other)
    embedded = [replace(image, vectors={other.id: unit(rng)})]
    store.add_embeddings(embedded)
    assert len(store.missing(other)) == 0
    store.put([product(0, unit(rng, 1), model)], [model.id])
    assert len(store.missing(other)) == 1
    store.add_embeddings([replace(embedded[0], fingerprint="of a file that was")])
    assert len(store.missing(other)) == 1
    assert store.switch(other) == 1  # not before all is embedded
    assert store.model(model.id).current
    store.add_embeddings(embedded)
    assert store.switch(other) == 0
    with pytest.raises(StaleModelError):
        store.put([shown], [model.id])
    assert store.drop_others() == ["a"]
    assert [one.source for one in store.models()] == ["runs/b"]
    assert len(store.search(other, unit(rng), 5)) == 1


def test_a_failure_within_leaves_nothing_of_a_portion(store: Store, model: IndexedModel) -> None:
    rng = np.random.default_rng(1)
    wrong = product(1, np.zeros((1, 3), np.float16), model)  # of another length: found at its end
    store.make_approximate(model, True)
    with pytest.raises(Exception, match="dimensions"):
        store.put([product(0, unit(rng, 1), model), wrong], [model.id])
    assert store.product_ids() == set()


def test_an_embedding_too_long_for_hnsw_is_refused(store: Store) -> None:
    long = store.add_model("runs/long", "long", 5000)
    refused("4000", store.make_approximate, long, True)


@pytest.mark.parametrize("name", ["mein index (ü)", "it's 100 %", "x" * 90 + " y"])
def test_the_path_of_a_folder_may_have_blanks(folder: Path, name: str) -> None:
    database = Database(str(folder / name))
    (row,) = database.rows("SHOW unix_socket_permissions")
    assert row["unix_socket_permissions"] == "0700"
    assert database.rows("SELECT 1 AS one") == [{"one": 1}]
    database.close()


def test_a_path_that_no_server_can_have_is_told_at_once(folder: Path) -> None:
    refused("does not take ',' in the path", Database, str(folder / "a, b"))
    assert not list(folder.iterdir())
