from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.dataset_creation_steps import reviews
from dataset.dataset_creation_steps.reviews import (
    BROKEN,
    CUT,
    LINES,
    PIECE_BYTES,
    Fields,
    read_objects,
    sized_image,
    stored_image,
    unique_photos,
)
from visual_search.common.errors import UserError


def asins(path: Path, start: int = 0, end: int = -1) -> tuple[list[Any], Counter[str]]:
    tally: Counter[str] = Counter()
    found = [row.asin for block in read_objects(path, tally, Fields, start, end) for row in block]
    return found, tally


def lines(count: int, seed: int = 0) -> list[bytes]:
    chance = random.Random(seed)
    return [
        json.dumps({"asin": f"B{n}", "reviewText": "é" * chance.randint(0, 900)}).encode()
        for n in range(count)
    ]


def test_plain_and_gzipped_give_the_same(tmp_path: Path) -> None:
    data = b"\n".join(lines(5000))
    assert len(data) > 3 * PIECE_BYTES
    (tmp_path / "plain.json").write_bytes(data)
    # Two members, and zeros behind them.
    packed = gzip.compress(data[:100_000]) + gzip.compress(data[100_000:]) + b"\0" * 700
    (tmp_path / "packed.json.gz").write_bytes(packed)
    for name in ("plain.json", "packed.json.gz"):
        found, tally = asins(tmp_path / name)
        assert found == [f"B{n}" for n in range(5000)]
        assert tally == {LINES: 5000}


def test_a_file_that_unpacks_to_far_more_than_it_is(tmp_path: Path) -> None:
    line = b'{"asin": "B1", "x": "' + b" " * 4000 + b'"}\n'
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(line * 10_000))
    assert path.stat().st_size < PIECE_BYTES
    found, tally = asins(path)
    assert (len(found), tally) == (10_000, {LINES: 10_000})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(1, 300), st.booleans())
def test_ranges_share_out_the_lines(lengths: list[int], step: int, end: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        text = "\n".join(json.dumps({"asin": n, "x": "y" * k}) for n, k in enumerate(lengths))
        path.write_text(text + "\n" * end)
        found: list[Any] = []
        for start in range(0, path.stat().st_size, step):
            found += asins(path, start, start + step)[0]
        assert found == list(range(len(lengths)))


def test_broken_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    bad = [b'{"asin": "B', b"[1]", b"null", b"{'asin': 'B'}", b'{"asin": "\xff"}', b"\0\0", b'"x"']
    path.write_bytes(b"\n".join([b'{"asin": 1}', *bad, b"", b"  ", b'{"asin": 2, "asin": 3}']))
    found, tally = asins(path)
    assert found == [1, 3]
    assert tally[BROKEN] == len(bad)
    assert tally[LINES] == len(bad) + 2


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_line_that_is_too_long_costs_only_itself(
    packed: bool, last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it held in memory: a file without line ends may be of any size."""
    monkeypatch.setattr(reviews, "LONGEST_LINE", 1_000_000)
    long = b'{"asin": "' + b"x" * 24_000_000
    fits = b'{"asin": 3, "x": "' + b"y" * 900_000 + b'"}'
    data = b"\n".join([b'{"asin": 1}', fits, long, *([] if last else [b'{"asin": 4}'])])
    path = tmp_path / "x.json"
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    tracemalloc.start()
    found, tally = asins(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [1, 3] if last else [1, 3, 4]
    assert (tally[LINES], tally[BROKEN], tally[CUT]) == (3 if last else 4, 1, 0)
    assert peak < 12_000_000
    if not packed:
        shared = [asins(path, start, start + 500_000) for start in range(0, len(data), 500_000)]
        assert [asin for some, _ in shared for asin in some] == found
        assert sum(part[LINES] for _, part in shared) == tally[LINES]
        assert sum(part[BROKEN] for _, part in shared) == 1


@pytest.mark.parametrize("share", [0.02, 0.3, 0.77, 0.9999])
def test_a_cut_gzip_gives_what_it_still_has(tmp_path: Path, share: float) -> None:
    data = b"\n".join(lines(4000, seed=1))
    packed = gzip.compress(data)
    path = tmp_path / "cut.json.gz"
    path.write_bytes(packed[: int(len(packed) * share)])
    found, tally = asins(path)
    # As far as another decompressor gets.
    there = zlib.decompressobj(wbits=31).decompress(path.read_bytes())
    whole = there.split(b"\n")[: None if len(there) == len(data) else -1]
    assert found == [f"B{n}" for n in range(len(whole))]
    assert tally[CUT] == 1
    assert tally[BROKEN] <= 1


def test_damage_within_a_gzip_ends_it(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"\n".join(lines(4000, seed=2))))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = b"\xff" * 64
    path = tmp_path / "damaged.json.gz"
    path.write_bytes(packed)
    found, tally = asins(path)
    assert 500 < len(found) < 4000
    assert tally[CUT] == 1


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        asins(tmp_path / "none.json")


HOST = "https://images-na.ssl-images-amazon.com/images/I/"


@pytest.mark.parametrize(
    "name",
    [
        "71eG75FTJJL._SY88.jpg",
        "71eG75FTJJL._SL500_.jpg",
        "71eG75FTJJL._SX38_SY50_CR,0,0,38,50_.jpg",
        "71eG75FTJJL.jpg",
    ],
)
def test_any_size_of_a_photo_is_the_same_photo(name: str) -> None:
    assert stored_image(HOST + name) == HOST + "71eG75FTJJL.jpg"
    assert sized_image(HOST + name, 500) == HOST + "71eG75FTJJL._SL500_.jpg"
    assert sized_image(HOST + name, 0) == HOST + "71eG75FTJJL.jpg"


@pytest.mark.parametrize(
    "url",
    ["http://shop.example/photo._SY88.jpg", HOST + "x.jpg?size=2", "file:///images/I/x.jpg", ""],
)
def test_other_addresses_stay_as_they_are(url: str) -> None:
    assert sized_image(url, 500) == stored_image(url) == url


def test_ids_with_signs_are_kept_whole() -> None:
    assert sized_image(HOST + "41+aB-%2B_L._SS40_.jpg", 500) == HOST + "41+aB-%2B_L._SL500_.jpg"


def test_a_photo_in_two_sizes_counts_once() -> None:
    urls = [HOST + "b.jpg", HOST + "a._SS40_.jpg", HOST + "a.jpg", "http://x/y.jpg"]
    assert unique_photos(urls) == ["http://x/y.jpg", HOST + "a._SS40_.jpg", HOST + "b.jpg"]
