from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import draw_product, write_csv
from visual_search.datasets import read_training_table
from visual_search.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight photos a.png … h.png in a folder `photos`."""
    (tmp_path / "photos").mkdir()
    for number, letter in enumerate("abcdefgh"):
        draw_product(number, 0, 40).save(tmp_path / "photos" / f"{letter}.png")
    return tmp_path


def table(folder: Path, columns: str, rows: list[list[object]]) -> Path:
    return write_csv(folder / "photos" / "table.csv", columns.split(","), rows)


def test_amazon_pairs(folder: Path) -> None:
    file = write_csv(
        folder / "amazon.csv", ["image_path", "label"], [["a.png", 70], ["b.png", 9], ["c.png", 70]]
    )
    images = read_training_table(file, folder / "photos")
    assert [path.name for path in images.paths] == ["a.png", "b.png", "c.png"]
    assert all(path.is_file() for path in images.paths)
    # In the order of their text: "70" before "9".
    assert images.class_names == ("70", "9")
    assert images.labels.tolist() == [0, 1, 0]
    assert images.labels.dtype == np.int64
    assert images.boxes is None


def test_dataset_info_with_boxes_and_test_rows(folder: Path) -> None:
    rows: list[list[object]] = [
        ["a.png", "cub/wren", "1,2,30,20", 0],
        ["b.png", "cub/owl", "", 0],
        ["c.png", "cub/jay", "", 1],
        ["d.png", "cub/owl", "[3, 4.0, 10, 12]", "False"],
        ["e.png", "cub/wren", "", "True"],
    ]
    images = read_training_table(table(folder, "file_name,label,bbox,is_test", rows), name="birds")
    assert [path.name for path in images.paths] == ["a.png", "b.png", "d.png"]
    # A class with test rows only is none of the training.
    assert images.class_names == ("birds/cub/owl", "birds/cub/wren")
    assert images.labels.tolist() == [1, 0, 0]
    assert images.item(0).box == (1, 2, 30, 20)
    assert images.item(1).box is None
    assert images.item(2).box == (3, 4, 10, 12)


def test_queries_and_gallery_of_a_retrieval_split_do_not_train(folder: Path) -> None:
    rows: list[list[object]] = [
        ["a.png", "x", "train"],
        ["b.png", "x", "query"],
        ["c.png", "x", "gallery"],
    ]
    file = table(folder, "file_name,label,evaluation_status", rows)
    assert [path.name for path in read_training_table(file).paths] == ["a.png"]


def test_folds(folder: Path) -> None:
    folds = [-1, -2, 0, 1, 2, 0, 1, 2]
    rows: list[list[object]] = [
        [f"{letter}.png", "x", fold] for letter, fold in zip("abcdefgh", folds, strict=True)
    ]
    file = table(folder, "file_name,label,fold", rows)

    def trained(held_out: int) -> str:
        return "".join(path.stem for path in read_training_table(file, fold=held_out).paths)

    assert trained(-1) == "acdefgh"
    assert trained(0) == "adegh"
    assert trained(2) == "acdfg"
    with pytest.raises(UserError, match=r"no fold 3 to hold out; its folds: 0, 1, 2"):
        trained(3)
    rows = [[*row, int(row[0] == "d.png")] for row in rows]
    file = table(folder, "file_name,label,fold,is_test", rows)
    assert trained(0) == "aegh"


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ("file_name,klass", [["a.png", 1]], "no column 'label'"),
        ("photo,label", [["a.png", 1]], "'image_path'.*'file_name'.*it has 'photo', 'label'"),
        ("file_name,label", [["a.png", 1], ["", 2]], "line 3: file_name is ''"),
        ("file_name,label", [["a.png", " "], ["b.png", ""]], "line 2: label is ' '.*1 more lines"),
        ("file_name,label,bbox", [["a.png", 1, ""], ["b.png", 1, "1,2,3"]], "line 3: bbox"),
        ("file_name,label,bbox", [["a.png", 1, "1,2,3,4,5"]], "line 2: bbox is '1,2,3,4,5'"),
        ("file_name,label,bbox", [["a.png", 1, "1,2,x,4"]], "line 2: bbox.*four numbers"),
        ("file_name,label,bbox", [["a.png", 1, "1,2,0,4"]], "line 2: bbox.*above 0"),
        ("file_name,label,is_test", [["a.png", 1, 0], ["b.png", 1, 2]], "line 3: is_test is '2'"),
        ("file_name,label,is_test", [["a.png", 1, 1]], "no row to train on: all of its 1 rows"),
        ("file_name,label,fold", [["a.png", 1, ""]], "line 2: fold is ''"),
        ("file_name,label,fold", [["a.png", 1, -3]], "line 2: fold is '-3'"),
        ("file_name,label,evaluation_status", [["a.png", 1, "?"]], "line 2: evaluation_status"),
        ("file_name,label", [["nowhere.png", 1]], "none of the images"),
        ("file_name,label", [], "no row to train on"),
    ],
)
def test_faults_are_named(
    folder: Path, columns: str, rows: list[list[object]], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_training_table(table(folder, columns, rows))
    assert "table.csv" in str(caught.value)


def test_a_fold_of_a_table_without_folds(folder: Path) -> None:
    with pytest.raises(UserError, match="no column 'fold'"):
        read_training_table(table(folder, "file_name,label", [["a.png", 1]]), fold=0)


def test_a_table_most_of_whose_photos_are_missing(folder: Path) -> None:
    rows: list[list[object]] = [[f"{letter}.png", 1] for letter in "abcuvwx"]
    with pytest.raises(UserError, match=r"4 of 7 images .* are not in .*, for example .*u\.png"):
        read_training_table(table(folder, "file_name,label", rows))
    assert len(read_training_table(table(folder, "file_name,label", rows[:6])).paths) == 6
