from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import draw_product
from visual_search.data import duplicates
from visual_search.data.duplicates import (
    CONSTANT_HASHES,
    TooManyPairs,
    hash_and_size,
    hashes_of_table,
    pairs_between,
)
from visual_search.data.images import ImageItem, load_pixels

imagehash = pytest.importorskip("imagehash", reason="needs the extra [data]")
pytest.importorskip("faiss", reason="needs the extra [data]")

hashes = st.lists(st.integers(0, 2**64 - 1), max_size=40)
flips = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 63)), max_size=60)


def naive(first: list[int], second: list[int], radius: int, within: bool) -> list[tuple[int, ...]]:
    return [
        (i, j, (a ^ b).bit_count())
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (a ^ b).bit_count() <= radius and (i < j or not within)
        if not {a, b} & set(CONSTANT_HASHES.tolist())
    ]


def listed(pairs: duplicates.Pairs) -> list[tuple[int, ...]]:
    return list(zip(*(side.tolist() for side in pairs), strict=True))


def neighbours(values: list[int], changes: list[tuple[int, int]]) -> list[int]:
    """The hashes and copies of them with some bits turned over: near-duplicates of all degrees."""
    answer = list(values)
    for place, bit in changes:
        if answer:
            answer.append(answer[place % len(answer)] ^ (1 << bit))
    return answer


@settings(deadline=None, max_examples=25)
@given(hashes, flips, st.sampled_from([0, 1, 4, 10, 63, 64]), st.sampled_from([7, 1000]))
def test_all_pairs_are_found_once(
    values: list[int], changes: list[tuple[int, int]], radius: int, block: int
) -> None:
    every = neighbours(values, changes)
    array = np.array(every, dtype=np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK_ROWS", block)
        patch.setattr(duplicates, "BLOCK_COLUMNS", 3 * block)
        within = pairs_between(array, None, radius)
        between = pairs_between(array[:90], array[60:], radius)
    assert listed(within) == naive(every, every, radius, within=True)
    assert listed(between) == naive(every[:90], every[60:], radius, within=False)


def test_many_equal_hashes_and_none() -> None:
    none, same = np.zeros(0, dtype=np.uint64), np.full(300, 7, dtype=np.uint64)
    pairs = listed(pairs_between(same, None, 4))
    assert len(set(pairs)) == len(pairs) == 300 * 299 // 2
    assert listed(pairs_between(none, None, 4)) == []
    assert listed(pairs_between(none, np.zeros(5, dtype=np.uint64), 4)) == []
    assert len(listed(pairs_between(same[:50], same[:40], 4, most=2000))) == 2000
    # 900 million pairs would take 20 GB: the search stops at the first block.
    with pytest.raises(TooManyPairs):
        pairs_between(np.repeat(same, 100), np.repeat(same, 100), 4, most=2000)


def images_of_all_kinds(folder: Path) -> list[Path]:
    """Drawn images: sizes below and above 32, wide, high, grey, transparent, palettes, flat."""
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(8, 5), (32, 32), (33, 64), (640, 41), (301, 517)]):
        noise = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        for ending, mode in (("jpg", "RGB"), ("png", "L"), ("png", "RGBA"), ("gif", "P")):
            paths.append(folder / f"{i}_{mode}.{ending}")
            image.convert(mode).save(paths[-1])
    paths.append(folder / "white.png")
    Image.new("L", (50, 70), 255).save(paths[-1])
    return paths


def test_hashes_are_those_of_the_package(tmp_path: Path) -> None:
    for path in images_of_all_kinds(tmp_path):
        with Image.open(path) as image:
            expected = str(imagehash.phash(image)), image.size
        if path.name == "white.png":  # one colour: a hash that is near to nothing
            expected = "0" * 16, image.size
        assert hash_and_size(path.read_bytes()) == expected, path.name


def test_unreadable_images_are_answers_and_a_column_of_hashes_is_read(tmp_path: Path) -> None:
    good, cut, text, gone = (tmp_path / f"{name}.jpg" for name in ("good", "cut", "text", "gone"))
    draw_product(1, 1, 200).save(good)
    cut.write_bytes(good.read_bytes()[:-900])
    text.write_text("<html>not found</html>")
    paths = [good, cut, text, gone]
    own = int(hash_and_size(good.read_bytes())[0], 16)
    values, unreadable = hashes_of_table(pd.DataFrame(index=range(4)), tmp_path, paths)
    assert values.tolist() == [own, 0, 0, 0]
    assert list(unreadable) == [1, 2, 3]
    assert "web page" in unreadable[2]
    table = pd.DataFrame({"hash": ["", "00000000000000ff", " ", "ffffffffffffffff"]})
    values, unreadable = hashes_of_table(table, tmp_path / "table.csv", paths)
    assert values.tolist() == [own, 255, 0, 2**64 - 1]
    assert list(unreadable) == [2]


def test_images_of_one_colour_match_nothing_and_cut_outs_match_their_jpeg(tmp_path: Path) -> None:
    flat = [Image.new("RGB", (40, 40), (step, step, step)) for step in (0, 128, 255)]
    flat.append(Image.new("RGBA", (40, 40), (0, 0, 0, 0)))
    cut_outs = []
    for number in range(6):  # black products, told apart by their transparency alone
        rng = np.random.default_rng(number)
        mask = Image.fromarray(rng.integers(0, 2, (6, 6), dtype=np.uint8) * 255).resize((96, 96))
        cut_outs.append(Image.new("RGBA", (96, 96), (0, 0, 0, 0)))
        cut_outs[-1].putalpha(mask)
    paths = [tmp_path / f"{number}.png" for number in range(len(flat) + len(cut_outs))]
    for path, image in zip(paths, flat + cut_outs, strict=True):
        image.save(path)
    for path in paths[len(flat) :]:
        seen, _ = load_pixels(ImageItem(path), 96)
        paths.append(path.with_suffix(".jpg"))
        Image.fromarray(seen.transpose(1, 2, 0)).save(paths[-1], quality=92)
    found = pairs_between(hashes_of_table(pd.DataFrame(), tmp_path, paths)[0], None, 10)
    first = len(flat)
    pairs = [(first + number, first + 6 + number) for number in range(6)]
    assert [pair[:2] for pair in listed(found)] == pairs
