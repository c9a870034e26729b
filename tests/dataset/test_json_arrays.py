from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import json_arrays
from dataset.json_arrays import array_items
from visual_search.errors import UserError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40)
@given(
    items=st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5),
    others=st.dictionaries(st.text().filter(lambda name: name != "images"), values, max_size=4),
    indent=st.sampled_from([None, 0, 3]),
    plain=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_items_equal_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[dict[str, Any]],
    others: dict[str, Any],
    indent: int | None,
    plain: bool,
    chunk: int,
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    names = [*others]
    content = {name: others[name] for name in names[:2]}
    content = {**content, "images": items, **{name: others[name] for name in names[2:]}}
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=plain), encoding="utf-8")
    before, json_arrays.CHUNK = json_arrays.CHUNK, chunk
    try:
        assert list(array_items(path, "images")) == items
        path.write_text(json.dumps(items, indent=indent), encoding="utf-8")
        assert list(array_items(path)) == items
    finally:
        json_arrays.CHUNK = before


def test_nan_is_understood(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [{"latitude": NaN, "longitude": -Infinity}]}')
    (item,) = array_items(tmp_path / "a.json", "images")
    assert math.isnan(item["latitude"])
    assert item["longitude"] == -math.inf


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected {; it is cut off"),
        ("[]", "expected {"),
        ('{"images": [{"a": 1}', "expected , or ]"),
        ('{"images": [{"a": 1}, {"b', "it is cut off"),
        ('{"images": [{"a": 1} {"b": 1}]}', "near character 21"),
        ('{"images": [{"a": 01}]}', "near character 19"),
        ('{"images": [{"a": 1}]} x', "goes on behind its end"),
        ('{"images": [1]}', "images holds '1'"),
        ('{"pictures": []}', "no list 'images'"),
    ],
)
def test_damage_is_said_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError) as caught:
        list(array_items(tmp_path / "a.json", "images"))
    assert words in str(caught.value)


def test_other_encodings_and_absence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": [{"a": "\xff"}]}')
    with pytest.raises(UserError, match="not UTF-8"):
        list(array_items(tmp_path / "a.json", "images"))
    with pytest.raises(UserError, match="does not exist"):
        list(array_items(tmp_path / "b.json", "images"))


def test_memory_is_that_of_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_arrays, "CHUNK", 1 << 14)
    path = tmp_path / "a.json"
    item = json.dumps({"name": "x" * 100, "numbers": list(range(20))})
    path.write_text('{"images": [' + ",".join([item] * 5_000) + "]}")
    assert path.stat().st_size > 900_000
    tracemalloc.start()
    assert sum(1 for _ in array_items(path, "images")) == 5_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
