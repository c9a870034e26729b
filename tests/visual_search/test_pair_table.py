"""The table of photos with queries: what is read is what was written."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visual_search.errors import UserError
from visual_search.pair_table import CLUSTER_FIELDS, SCHEMA, read_pairs, write_pairs


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
