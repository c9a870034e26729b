import gzip
import json
import random
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dataset.dataset_creation_steps import reviews
from dataset.dataset_creation_steps.reviews import (
    BROKEN,
    CUT,
    LINES,
    PIECE_BYTES,
    Fields,
    read_objects,
    unique_images,
)
from tests.commands import refused
from visual_search.common.files import LFS_POINTER


def asins(path: Path) -> tuple[list[Any], Counter[str]]:
    tally: Counter[str] = Counter()
    found = [row.asin for block in read_objects(path, tally, Fields) for row in block]
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


DEEP = b"[" * 200_000
BAD = [
    *(b'{"asin": "B', b"[1]", b"null", b'{"asin": "\xff"}', b"\0\0", b'"x"', b"{'asin': B}"),
    b'{"asin": ' + DEEP + b"]" * 200_000 + b"}",
    b'{"asin": ' + b'{"x": ' * 200_000,
    b"{'asin': " + DEEP + b"]" * 200_000 + b"}",
    b"{'asin': " + b"-" * 200_000 + b"1}",
    b"{'asin': __import__('os').system('true')}",
]


def test_broken_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\n".join([b'{"asin": 1}', *BAD, b"", b"  ", b'{"asin": 2, "asin": 3}']))
    found, tally = asins(path)
    assert found == [1, 3]
    assert tally[BROKEN] == len(BAD)
    assert tally[LINES] == len(BAD) + 2


JSON = b'{"asin": "B1"}\n{"asin": "B2"}\n'


def packed(data: bytes) -> bytes:
    """By gzip, without the time: every process has the same cases."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        JSON,
        JSON.replace(b"\n", b"\r\n"),
        JSON.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + JSON,
        packed(JSON),
        packed(packed(JSON)),
        # As the dumps before 2018 have it.
        b"{'asin': 'B1', 'title': u'it\\'s', 'x': [None, True, 1.5]}\n{'asin': \"B2\"}\n",
    ],
)
def test_every_way_in_which_lines_are_published_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert asins(tmp_path / "x") == (["B1", "B2"], {LINES: 2})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<!DOCTYPE html><html>sorry</html>", r"is a web page.*<!DOCTYPE html"),
        (b'\n[{"asin": "B1"},\n{"asin": "B2"}]\n', "is one JSON array"),
        (LFS_POINTER + b"v1\noid sha256:0\n", "is a git-LFS pointer: run `git lfs pull`"),
        (packed(packed(packed(JSON))), "packed by gzip more than 2 times"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_another_kind_is_said_by_how_it_begins(
    content: bytes, expected: str, packed: bool, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(content) if packed else content)
    refused(expected, asins, tmp_path / "x")


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


HOST = "https://images-na.ssl-images-amazon.com/images/I/"


def test_an_image_in_two_sizes_counts_once() -> None:
    urls = [HOST + "b.jpg", HOST + "a._SS40_.jpg", HOST + "a.jpg", "http://x/y.jpg"]
    assert unique_images(urls) == ["http://x/y.jpg", HOST + "a._SS40_.jpg", HOST + "b.jpg"]
