import os
from pathlib import Path

import pytest

from dataset import check_table
from dataset.check_table import check, main
from tests.commands import inside, refused
from tests.conftest import draw_product, write_csv
from visual_search.data.dataset_info import COLUMNS
from visual_search.data.tables import read_common_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for letter in "abcdefgh":
        draw_product(1, 1, 40).save(tmp_path / f"{letter}.png")
    return tmp_path


def found(file: Path, **options: str) -> list[tuple[int, str]]:
    return [(problem.line, problem.column) for problem in check(file, **options).problems]  # type: ignore[arg-type]


def test_every_problem_with_its_line(folder: Path) -> None:
    rows = [
        ["a.png", "x", "", "1,2,30,20", 40, 40, "train", 0, "0123456789abcDEF", -1],
        ["", "x", "", "", 40, 40, "", 0, "", 0],
        ["c.png", " ", "with\na line break", "", 40, 40, "", 0, "", 1],
        ["d.png", "x", "", "1,2,3", 40, 40, "", 0, "", -3],
        ["e.png", "x", "", "0,0,0,5", 40, "tall", "probe", 2, "xyz", "one"],
        ["f.png", "x", "", "20,0,21,5", 40, 40, "", 0, "", 0],
        ["g.png", "x", "", "-1,0,5,5", 40, 40, "", 0, "", 0],
        ["h.png", "x", "", "0,0,40,40", 40, 40, "", 0, "", 0],
        ["i.png", "x", "", "0,0,40,40", 40, 40, "", 0, "", 0],
    ]
    file = write_csv(folder / "dataset_info.csv", [*COLUMNS, "fold"], rows)
    text = file.read_text().replace("d.png", "\nd.png", 1)  # an empty line before line 6
    file.write_text(text)
    expected = [
        (3, "file_name"),
        (4, "label"),
        (7, "bbox"),
        (7, "fold"),
        *((8, name) for name in ("bbox", "evaluation_status", "fold", "hash", "height", "is_test")),
        (9, "bbox"),
        (10, "bbox"),
        (12, "file_name"),
    ]
    assert found(file) == expected
    assert found(file, files="all") == expected
    assert found(file, files="none") == expected[:-1]
    # Reading for training stops at the first of the first column, on the same line.
    refused(r"line 3: file_name is ''; it must not be empty$", read_common_table, file)
    good = [row for row in rows if row[0] in ("a.png", "f.png")]
    write_csv(file, [*COLUMNS, "fold"], good)
    refused("line 3: bbox is '20,0,21,5'; it must lie within", read_common_table, file)


def test_sizes_are_compared_and_broken_images_found_on_demand(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"")
    rows = [["a.png", "x", 40, 41], ["b.png", "x", 40, 40], ["c.png", "x", 40, 40]]
    file = write_csv(folder / "t.csv", ["file_name", "label", "width", "height"], rows)
    assert found(file) == []
    listed = check(file, files="all").problems
    assert [(problem.line, problem.column) for problem in listed] == [
        (2, "width"),
        (3, "file_name"),
    ]
    assert listed[0].what == "is 40 x 41, but the image has 40 x 40"
    assert "0 bytes" in listed[1].what
    # A box is compared with the image itself where the table does not say its size; two boxes of
    # one image are two rows.
    boxes = [["a.png", "x", "30,0,20,9"], ["a.png", "x", "0,0,9,9"], ["c.png", "x", ""]]
    write_csv(file, ["file_name", "label", "bbox"], boxes)
    assert found(file) == []
    (problem,) = check(file, files="all").problems
    assert "has the box (30, 0, 20, 9), which reaches outside" in problem.what


def test_a_sample_is_spread_over_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_table, "SAMPLE", 10)
    names = ["a.png"] * 50 + ["missing.png"] * 50
    file = write_csv(folder / "t.csv", ["image_path", "label"], [[name, "x"] for name in names])
    checked = check(file)
    missing = [problem for problem in checked.problems if "does not exist" in problem.what]
    assert (len(missing), checked.looked_at) == (5, 10)


def test_what_is_no_file_costs_its_own_line(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    names = ["pipe.png", "x" * 300 + ".png", ".", "a.png/b.png", "a.png"]
    file = write_csv(folder / "t.csv", ["file_name", "label"], [(name, "x") for name in names])
    for files in ("sample", "all"):
        assert found(file, files=files) == [(line, "file_name") for line in (2, 3, 4, 5)]


def test_every_kind_of_table_is_checked_for_every_rule(dev_folder: Path) -> None:
    """The kinds are those of docs/data.md."""
    (dev_folder / "train").symlink_to(dev_folder / "gallery")
    first, second = "0_0.png", "1_0.png"
    for name, path, label, more in (
        ("dataset_info.csv", "file_name", "label", ""),
        ("pairs.csv", "image_path", "label", ""),
        ("train.csv", "name", "class", ""),
        ("gallery.csv", "img_path", "product_id", ",seller_img_id"),
        ("queries.csv", "img_path", "product_id", ",user_img_id,bbox_x,bbox_y,bbox_w,bbox_h"),
    ):
        folder = "" if path == "name" else "gallery/"
        rows = [(f"{folder}{first}", "7"), (f"{folder}./{first}", "8"), (f"{folder}{first}", "7.0")]
        rows += [(f"{folder}{second}", "nan"), ("", "9"), (f"{folder}none.png", "07")]
        end = ",1,0,0,9,9"[: 10 if "bbox_x" in more else 2] if more else ""
        text = "".join(f"{image},{cell}{end}\n" for image, cell in rows)
        file = dev_folder / name
        file.write_text(f"{path},{label}{more}\n{text}")
        checked = check(file)
        expected = [(3, label), (4, path), (5, label), (6, path), (7, path)]
        assert [(problem.line, problem.column) for problem in checked.problems] == expected, name
        two_labels, twice, *_ = (problem.what for problem in checked.problems)
        assert two_labels == "is '8', but line 2 has this image under '7'"
        assert twice == f"is '{folder}{first}', as line 2 has it"
        assert any("'7' (line 2) and '07' (line 7)" in note for note in checked.notes)


@pytest.mark.parametrize(
    ("column", "cells"), [("split", "train val"), ("Set", "TRAIN test"), ("is_valid", "False True")]
)
def test_another_kits_split_is_told(folder: Path, column: str, cells: str) -> None:
    rows = [(f"{letter}.png", "x", cell) for letter, cell in zip("ab", cells.split(), strict=True)]
    file = write_csv(folder / "t.csv", ["file_name", "label", column], rows)
    assert f"column '{column}'" in check(file).problems[0].what
    refused(f"line 1|column '{column}'", read_common_table, file)
    write_csv(file, ["file_name", "label", column], rows[:1])
    assert not check(file).problems


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\ufeff<!DOCTYPE html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ('[{"file_name": "a.png"}]', "it is JSON"),
        ("PK\x03\x04\0", "is a zip archive, as spreadsheets are"),
        ("file_name;label\na.png;x\n", "with commas in place of ';'"),
        ("photo,label\na.png,x\n", "needs the images' paths"),
        ("file_name,image_path,label\na,a,a\n", "needs the images' paths"),
        ("file_name,class\na.png,x\n", "no column label"),
        ("img_path,user_img_id\na.png,1\n", "no column bbox_x"),
    ],
)
def test_what_is_no_table(folder: Path, text: str, words: str) -> None:
    (folder / "t.csv").write_text(text)
    refused(words, found, folder / "t.csv")


def test_the_command(folder: Path) -> None:
    file = write_csv(folder / "t.csv", ["file_name", "label"], [["a.png", "x"], ["z.png", ""]])
    done = inside(main, file)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"{file} line 3: file_name is 'z.png'; the file does not exist",
        f"{file} line 3: label is ''; it must not be empty",
    ]
    assert f"error: {file} has 2 problems" in done.stderr
    draw_product(1, 1).save(folder / "z.png")
    write_csv(file, ["file_name", "label"], [["a.png", "x"], ["z.png", "x"]])
    assert "nothing is wrong" in (said := inside(main, file).stdout)
    assert "dataset.tables" in said
    header = ["seller_img_id", "img_path"]
    said = inside(main, write_csv(folder / "gallery.csv", header, [[1, "a.png"]])).stdout
    assert "dataset.dev_set.eval_root" in said
