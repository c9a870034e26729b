"""The table of images with queries, and which texts a batch is shown with."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import refused
from tests.visual_search.drawn_pairs import pair_row, write_drawn_pairs
from visual_search.text.config import PairDataConfig
from visual_search.text.pairs import (
    CLUSTER_FIELDS,
    SCHEMA,
    PairTable,
    QueryTexts,
    read_pairs,
    write_pairs,
)
from visual_search.text.retrieval import relevance_of


def rows() -> list[dict[str, Any]]:
    made = []
    for n in range(6):
        queries = [f"Стол {n}", "ЁЛКА"][: 1 + n % 2]
        more: dict[str, Any] = {
            "category": "Мебель" if n else "",
            "split": "test" if n == 5 else "train",
        }
        more |= {"texts": [query.lower() for query in queries], "group": f"g{n // 2}"}
        made.append(pair_row(f"photos/{n}.jpg", queries, **more))
    return made


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    written = pa.Table.from_pylist(rows(), schema=SCHEMA)
    write_pairs(path, written)
    table = read_pairs(path)
    assert len(table) == 6
    assert [str(p) for p in table.paths] == [str(tmp_path / f"photos/{n}.jpg") for n in range(6)]
    assert table.queries[1] == ["Стол 1", "ЁЛКА"]
    assert list(table.texts)[:2] == [["стол 0"], ["стол 1", "ёлка"]]
    assert table.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert table.categories[-1] == "Мебель"
    assert table.clusters is None
    train = read_pairs(path, "train", root=Path("/elsewhere"))
    assert (len(train), str(train.paths[4])) == (5, "/elsewhere/photos/4.jpg")
    assert read_pairs(path, "test").queries[0] == ["Стол 5", "ЁЛКА"]
    for field, column in zip(CLUSTER_FIELDS, ([[n] for n in range(6)], range(6)), strict=True):
        written = written.append_column(pa.field(*field), pa.array(column, field[1]))
    write_pairs(path, written)
    some = read_pairs(path).take([4, 1])
    assert (some.groups.tolist(), list(some.clusters)) == ([2, 0], [4, 1])  # type: ignore[arg-type]
    # As worker processes get it.
    copy = pickle.loads(pickle.dumps(some))
    assert list(copy.queries) == list(some.queries) == [["Стол 4"], ["Стол 1", "ЁЛКА"]]
    assert copy.paths[1] == some.paths[1]


def put(path: Path, row: int | None = None, **change: object) -> None:
    changed = rows()
    if row is not None:
        changed[row] |= change
    write_pairs(path, pa.Table.from_pylist(changed, schema=SCHEMA))


WHOLE = pa.Table.from_pylist(rows(), schema=SCHEMA)
GROUP = SCHEMA.get_field_index("group")
NO_TABLES: dict[str, Callable[[Path], object]] = {
    r"pairs\.parquet does not exist; make it with": lambda path: path.unlink(missing_ok=True),
    "no readable parquet": lambda path: path.write_text("no parquet"),
    "no column 'texts'": lambda path: pq.write_table(WHOLE.drop_columns("texts"), path),
    "column 'group' is int64, string is needed": lambda path: pq.write_table(
        WHOLE.set_column(GROUP, "group", pa.array(range(6))), path
    ),
    "no row of the split 'val'": put,
    r"'photos/3\.jpg' has no query": lambda path: put(path, 3, queries=[]),
    r"'photos/2\.jpg' has .* not as many": lambda path: put(path, 2, texts=["а", "б", "в"]),
    r"'photos/4\.jpg' has .* not as many": lambda path: put(path, 4, language=[]),
    r"'photos/1\.jpg' has no group": lambda path: put(path, 1, group=" "),
    r"'photos/5\.jpg' has no group": lambda path: put(path, 5, group=None),
    "has no path": lambda path: put(path, 0, image_path=None),
}


@pytest.mark.parametrize("message", NO_TABLES)
def test_what_is_no_table_is_said(message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    NO_TABLES[message](path)
    refused(message, read_pairs, path, "val" if "'val'" in message else None)


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    return read_pairs(write_drawn_pairs(tmp_path / "data", photos=2), "train")


def test_a_draw_depends_on_seed_epoch_and_image_alone(table: PairTable) -> None:
    texts, again = (QueryTexts(table, PairDataConfig(seed=1)) for _ in range(2))
    images, labels = np.arange(len(table)), texts.groups
    seen: list[set[str]] = [set() for _ in range(len(table))]
    for epoch in range(12):
        chosen = texts.chosen(images, labels, epoch)
        assert chosen.owners is None
        flipped = again.chosen(images[::-1], labels[::-1], epoch)
        assert flipped.texts[::-1] == chosen.texts
        for image, text in enumerate(chosen.texts):
            seen[image].add(text)
    assert seen == [set(queries) for queries in table.queries]
    # A substitute of another product brings its own texts.
    other = int(labels.max())
    chosen = texts.chosen(np.array([0]), np.array([other]), 0)
    assert chosen.texts[0] in table.queries[int(texts.first[other])]


@pytest.mark.parametrize("how", ["draw", "mean"])
def test_texts_that_the_towers_read_alike_are_one(how: Any, tmp_path: Path) -> None:
    """Letters' case, spaces, forms of a letter; and what cleaning left empty is what was typed."""
    typed = [["Ёлка"], [" \u0435\u0308лка"], ["ЁЛКА", "ёлка"], ["стол"]]
    made = [pair_row(f"{n}.jpg", queries, texts=[""] * len(queries), split="test")
            for n, queries in enumerate(typed)]  # fmt: skip
    write_pairs(tmp_path / "pairs.parquet", pa.Table.from_pylist(made, schema=SCHEMA))
    table = read_pairs(tmp_path / "pairs.parquet")
    texts = QueryTexts(table, PairDataConfig(text_column="texts", queries_per_photo=how))
    ids = texts.chosen(np.arange(4), texts.groups, 0).ids.tolist()
    assert ids[0] == ids[1] == ids[2] != ids[3]
    relevance = relevance_of(table, "texts")
    assert relevance.texts == ["ёлка", "стол"]
    assert [rows.tolist() for rows in relevance.images_of] == [[0, 1, 2], [3]]


def test_equal_texts_have_equal_numbers(table: PairTable) -> None:
    texts = QueryTexts(table, PairDataConfig(queries_per_photo="mean"))
    chosen = texts.chosen(np.array([0, 1, 2]), texts.groups[:3], 0)
    # Images 0 and 1 are of one product, image 2 of another.
    assert chosen.ids[0] == chosen.ids[1] != chosen.ids[2]
    assert chosen.owners is not None
    assert chosen.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert chosen.texts == [*table.queries[0], *table.queries[1], *table.queries[2]]
    most = QueryTexts(table, PairDataConfig(queries_per_photo="mean", most_queries=1))
    assert most.chosen(np.array([0]), np.array([0]), 0).texts == table.queries[0][:1]
