import json
from pathlib import Path

import msgspec
import pytest

from dataset.sources.json_lists import read_json
from tests.commands import refused


class Item(msgspec.Struct):
    a: int | None = None
    b: str = ""


class Table(msgspec.Struct):
    images: list[Item]


def test_what_is_named_is_read_and_the_rest_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"info": {"x": [1, {}]}, "images": [{"a": 1, "b": "é, NaN"}, {"c": None}]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    assert read_json(path, Table).images == [Item(1, "é, NaN"), Item()]
    path.write_text('{"images": [{"a": NaN, "b": "x", "latitude": -Infinity}, {"a": 3}]}')
    assert read_json(path, Table).images == [Item(None, "x"), Item(3)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is damaged: .*; it is cut off"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"images": [{"a": 1}', "; it is cut off, get it again"),
        (b'{"images": [{"a": 1} {"b": 1}]}', r"is damaged: .*byte 21"),
        (b'{"images": [{"a": 1}]} x', r"is damaged: .*byte 24"),
        (b'{"images": [{"a": "1"}]}', r"Expected `int \| null`, got `str` - at `\$.images\[0\].a`"),
        (b'{"pictures": []}', "missing required field `images`"),
        (b'{"images": [{"b": "\xff"}]}', "is damaged: "),
    ],
)
def test_damage_is_said_with_its_place(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    refused(words, read_json, tmp_path / "a.json", Table)
    refused("cannot be read", read_json, tmp_path / "b.json", Table)
