from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.contact_sheet import draw_groups
from dataset.filter_dataset_info import filter_table, main
from tests.commands import inside, stopped
from tests.conftest import csv_rows, draw_product, write_csv
from tests.visual_search.evaluation.test_report import Page
from visual_search.data.duplicates import find_removals

COLUMNS = ["file_name", "label", "width", "height", "is_test", "hash"]


def table(folder: Path, rows: list[tuple[str, str, int, int, int, int]]) -> Path:
    cells = [(*row[:5], f"{row[5]:016x}") for row in rows]
    return write_csv(folder / "dataset_info.csv", COLUMNS, cells)


def bits(*places: int) -> int:
    # The hash 0 is that of an image of one colour, which matches nothing.
    return 1 << 40 | sum(1 << place for place in places)


def test_the_rule_by_hand(tmp_path: Path) -> None:
    """At 2 bits: b is the largest; a and d are near it; c is near a only, which goes: c stays."""
    file = table(
        tmp_path,
        [
            ("a", "cup", 10, 10, 0, bits(0, 1)),
            ("b", "cup", 30, 10, 0, bits()),
            ("c", "cup", 10, 10, 0, bits(0, 1, 2, 3)),
            ("d", "cup", 20, 10, 0, bits(9)),
            ("e", "cup", 10, 10, 0, bits(0, 1, 2, 3)),
            ("f", "lamp", 10, 10, 0, bits()),
            ("g", "cup", 10, 10, 1, bits()),
        ],
    )
    kept, removals = filter_table(file, dedup=True, threshold=2)
    assert kept["file_name"].tolist() == ["b", "c", "f", "g"]
    assert list(removals.itertuples(index=False, name=None)) == [
        ("a", "cup", "near-duplicate", "b", 2),
        ("d", "cup", "near-duplicate", "b", 1),
        ("e", "cup", "near-duplicate", "c", 0),
    ]


def test_the_rule_against_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 2**64, 80, dtype=np.uint64)[rng.integers(0, 80, 400)]
    turned = np.uint64(1) << rng.integers(0, 64, (400, 5)).astype(np.uint64)
    hashes ^= np.bitwise_or.reduce(turned, axis=1)
    pixels, groups = rng.integers(1, 5, 400), rng.integers(0, 3, 400)
    kept: list[int] = []
    expected = []
    for i in sorted(range(400), key=lambda i: (-pixels[i], i)):
        near = [
            (int(hashes[i] ^ hashes[k]).bit_count(), -pixels[k], k)
            for k in kept
            if groups[k] == groups[i] and int(hashes[i] ^ hashes[k]).bit_count() <= 8
        ]
        if near:
            expected.append((i, min(near)[2], min(near)[0]))
        else:
            kept.append(i)
    found = find_removals(hashes, pixels, groups, 8)
    columns = found.tolist()
    assert list(zip(*columns, strict=True)) == sorted(expected)
    assert expected


def test_sizes(tmp_path: Path) -> None:
    file = table(
        tmp_path, [("a", "x", 10, 90, 0, 0), ("b", "x", 50, 50, 0, 0), ("c", "x", 50, 120, 0, 0)]
    )
    kept, removals = filter_table(file, min_size=20, max_size=100)
    assert kept["file_name"].tolist() == ["b"]
    assert removals["reason"].tolist() == ["a side below 20 px", "a side above 100 px"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, a smaller copy of each under an odd name, and a cut one; no hashes yet."""
    rows = []
    for product in range(3):
        image = draw_product(product, product, 160)
        copy = f'copy\nof {product}, "it\'s" ü.jpg'
        image.save(tmp_path / f"{product}.png")
        image.resize((100, 100), Image.Resampling.BICUBIC).save(tmp_path / copy, quality=90)
        rows += [(copy, "x", 100, 100, 0), (f"{product}.png", "x", 160, 160, 0)]
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    rows.append(("cut.png", "x", 160, 160, 0))
    return write_csv(tmp_path / "dataset_info.csv", COLUMNS[:5], rows)


def test_the_command_removes_copies_whatever_their_names(images: Path) -> None:
    """A stray line break in a name once kept every duplicate in a table like this."""
    done = inside(main, "--dataset_info", images, "--dedup", "--contact-sheet")
    folder = images.parent
    kept = [row["file_name"] for row in csv_rows(folder / "dataset_info_filtered.csv")]
    assert kept == ["0.png", "1.png", "2.png"]
    removed = csv_rows(folder / "dataset_info_removed.csv")
    copies = [f'copy\nof {product}, "it\'s" ü.jpg' for product in range(3)]
    assert [row["file_name"] for row in removed] == [*copies, "cut.png"]
    assert [row["duplicate_of"] for row in removed] == ["0.png", "1.png", "2.png", ""]
    assert removed[3]["reason"].startswith("unreadable")
    assert "next: python dataset/get_kfold_split.py" in done.stdout
    rows = Page((folder / "dataset_info_duplicates.html").read_text()).rows
    expected = {f"{product}.png": f'copy\nof {product}, "it\'s" ü.jpg' for product in range(3)}
    assert {kept[1]: copy[1] for kept, copy in rows} == expected
    assert all("right" in kept[0] for kept, _ in rows)


def test_an_image_with_two_boxes_is_one_image(tmp_path: Path) -> None:
    header = [*COLUMNS, "bbox"]
    rows = [
        ("a", "x", 9, 9, 0, "8" * 16, "0,0,4,4"),
        ("a", "x", 9, 9, 0, "8" * 16, "4,4,4,4"),
        ("b", "x", 5, 5, 0, "8" * 16, "0,0,4,4"),
        ("b", "x", 5, 5, 0, "8" * 16, "1,1,3,3"),
    ]
    file = write_csv(tmp_path / "info.csv", header, rows)
    kept, removals = filter_table(file, dedup=True)
    assert kept["file_name"].tolist() == ["a", "a"]
    assert removals["duplicate_of"].tolist() == ["a", "a"]


@pytest.mark.parametrize(
    ("rows", "reasons"),
    [
        (["a,8000000000000001,0", "b,7fffffffffffffff,0"], []),
        (["a,8000000000000001,1", "b,8000000000000001,1"], []),
        (["a,,0", "b,,0"], ["unreadable"] * 2),
        (["a,,0", "b,8000000000000001,0", "c,8000000000000001,0"], ["unreadable", "near-"]),
    ],
)
def test_where_there_is_no_duplicate_or_no_image(
    tmp_path: Path, rows: list[str], reasons: list[str]
) -> None:
    file = tmp_path / "t.csv"
    lines = [f"{row},x,9,9" for row in rows]
    file.write_text("\n".join(["file_name,hash,is_test,label,width,height", *lines]))
    kept, removals = filter_table(file, dedup=True)
    assert len(kept) == len(rows) - len(reasons)
    starts = zip(removals["reason"], reasons, strict=True)
    assert all(reason.startswith(words) for reason, words in starts)


def test_of_many_groups_some_are_drawn(tmp_path: Path) -> None:
    draw_product(1, 1).save(tmp_path / "a.png")
    pairs = [(str(i), "a.png", f"{bits} bits") for i in range(130) for bits in range(10)]
    page = tmp_path / "a.html"
    assert draw_groups(page, "", "", "right", pairs, tmp_path) == (120, 130)
    assert [len(row) for row in Page(page.read_text()).rows] == [9] * 120
    assert "7 bits" in page.read_text()
    assert "8 bits" not in page.read_text()
    assert draw_groups(page, "", "", "right", [], tmp_path) == (0, 0)
    assert not page.exists()


def test_a_table_of_ones_own_needs_no_sizes(images: Path) -> None:
    rows = [(row["file_name"], "x", row["file_name"] == "gone.png") for row in csv_rows(images)]
    rows += [("gone.png", "x", True)]
    file = write_csv(images.parent / "own.csv", ["file_name", "label", "is_test"], rows)
    kept, removals = filter_table(file, min_size=120, dedup=True)
    assert kept["file_name"].tolist() == ["0.png", "1.png", "2.png", "gone.png"]
    reasons = removals["reason"].tolist()
    assert reasons[:3] == ["a side below 120 px"] * 3
    assert reasons[3].startswith("unreadable: ")
    kept, removals = filter_table(file, dedup=True)
    assert removals["duplicate_of"].tolist() == ["0.png", "1.png", "2.png", ""]


def test_a_command_that_is_asked_for_nothing_says_so(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["file_name", "label"], [("a", "x")])
    said = stopped(main, "--dataset_info", file, "--threshold", 4)
    assert "nothing is asked for: name --dedup" in said
