"""The table of images with queries, and which texts a batch is shown with."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.visual_search.drawn_pairs import write_drawn_pairs
from visual_search.common.errors import UserError
from visual_search.text.config import PairDataConfig
from visual_search.text.pairs import (
    CLUSTER_FIELDS,
    SCHEMA,
    PairTable,
    QueryTexts,
    read_pairs,
    write_pairs,
)


def rows(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "image_path": f"photos/{n}.jpg",
            "image": str(n),
            "queries": [f"Стол {n}", "ЁЛКА"][: 1 + n % 2],
            "texts": [f"стол {n}", "ёлка"][: 1 + n % 2],
            "language": ["ru", "ru"][: 1 + n % 2],
            "group": f"g{n // 2}",
            "category": "Мебель" if n else "",
            "split": "test" if n == 5 else "train",
        }
        for n in range(count)
    ]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_pairs(path, pa.Table.from_pylist(rows(), schema=SCHEMA))
    table = read_pairs(path)
    assert len(table) == 6
    assert [str(p) for p in table.paths] == [str(tmp_path / f"photos/{n}.jpg") for n in range(6)]
    assert table.queries[1] == ["Стол 1", "ЁЛКА"]
    assert table.texts[:2] == [["стол 0"], ["стол 1", "ёлка"]]
    assert table.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert table.categories[-1] == "Мебель"
    assert table.clusters is None
    assert table.query_clusters is None
    train = read_pairs(path, "train", root=Path("/elsewhere"))
    assert (len(train), str(train.paths[4])) == (5, "/elsewhere/photos/4.jpg")
    assert read_pairs(path, "test").images[0] == "5"
    with pytest.raises(IndexError):
        train.images[5]


def test_some_rows_and_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    table = pa.Table.from_pylist(rows(), schema=SCHEMA)
    for field, column in zip(CLUSTER_FIELDS, ([[n] for n in range(6)], range(6)), strict=True):
        table = table.append_column(pa.field(*field), pa.array(column, field[1]))
    write_pairs(path, table)
    found = read_pairs(path).take([4, 1])
    assert (list(found.images), found.groups.tolist()) == (["4", "1"], [2, 0])
    assert found.clusters is not None
    assert found.query_clusters is not None
    assert (found.clusters.tolist(), list(found.query_clusters)) == ([4, 1], [[4], [1]])
    copy = pickle.loads(pickle.dumps(found))
    assert copy.queries[1] == found.queries[1]
    assert found.take(np.array([1])).paths[0] == found.paths[1]


def test_what_is_no_table_is_said(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    with pytest.raises(UserError, match=r"pairs\.parquet does not exist; make it with"):
        read_pairs(path)
    path.write_text("no parquet")
    with pytest.raises(UserError, match="no readable parquet"):
        read_pairs(path)
    whole = pa.Table.from_pylist(rows(), schema=SCHEMA)
    pq.write_table(whole.drop_columns("texts"), path)
    with pytest.raises(UserError, match="no column 'texts'"):
        read_pairs(path)
    place = SCHEMA.get_field_index("group")
    pq.write_table(whole.set_column(place, "group", pa.array(range(6))), path)
    with pytest.raises(UserError, match="column 'group' is int64, string is needed"):
        read_pairs(path)
    pq.write_table(whole, path)
    with pytest.raises(UserError, match="no row of the split 'val'"):
        read_pairs(path, "val")
    changes: list[dict[str, list[str]]] = [{"queries": []}, {"texts": ["а", "б", "в"]}]
    for change in changes:
        bad = rows()
        bad[3] |= change
        write_pairs(path, pa.Table.from_pylist(bad, schema=SCHEMA))
        with pytest.raises(UserError, match=r"'photos/3\.jpg' has no query, or not as many"):
            read_pairs(path)


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    return read_pairs(write_drawn_pairs(tmp_path / "data", photos=2), "train")


def test_a_draw_depends_on_seed_epoch_and_photo_alone(table: PairTable) -> None:
    texts, again = (QueryTexts(table, PairDataConfig(seed=1)) for _ in range(2))
    photos = np.arange(len(table))
    labels = texts.groups
    seen: list[set[str]] = [set() for _ in range(len(table))]
    for epoch in range(12):
        chosen = texts.chosen(photos, labels, epoch)
        assert chosen.owners is None
        flipped = again.chosen(photos[::-1], labels[::-1], epoch)
        assert flipped.texts[::-1] == chosen.texts
        for photo, text in enumerate(chosen.texts):
            assert text in table.queries[photo]
            seen[photo].add(text)
    assert all(len(texts) == 2 for texts in seen)


def test_equal_texts_have_equal_numbers(table: PairTable) -> None:
    texts = QueryTexts(table, PairDataConfig(queries_per_photo="mean"))
    chosen = texts.chosen(np.array([0, 1, 2]), texts.groups[:3], 0)
    # Photos 0 and 1 are of one product, photo 2 of another.
    assert chosen.ids[0] == chosen.ids[1] != chosen.ids[2]
    assert chosen.owners is not None
    assert chosen.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert chosen.texts == [*table.queries[0], *table.queries[1], *table.queries[2]]
    most = QueryTexts(table, PairDataConfig(queries_per_photo="mean", most_queries=1))
    assert most.chosen(np.array([0]), np.array([0]), 0).texts == table.queries[0][:1]


def test_a_stand_in_of_another_product_has_its_own_texts(table: PairTable) -> None:
    texts = QueryTexts(table, PairDataConfig())
    other = int(texts.groups.max())
    chosen = texts.chosen(np.array([0]), np.array([other]), 0)
    assert chosen.texts[0] in table.queries[int(texts.first[other])]


def test_shuffled_products_swap_their_texts(table: PairTable) -> None:
    texts = QueryTexts(table, PairDataConfig(shuffle_texts=True, seed=3))
    given = [texts.of(photo) for photo in range(len(table))]
    assert sorted(map(tuple, given)) == sorted(map(tuple, table.queries))
    moved = sum(a != b for a, b in zip(given, table.queries, strict=True))
    assert moved > len(table) / 2
    for photo in range(0, len(table), 2):
        assert given[photo] == given[photo + 1]
