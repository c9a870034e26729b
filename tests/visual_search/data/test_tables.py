import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.check_table import check
from dataset.downsample_classes import downsample
from dataset.filter_dataset_info import filter_table
from dataset.get_kfold_split import write_folds
from dataset.get_train_test_split import split_by_classes
from tests.commands import refused
from tests.conftest import write_csv
from visual_search.common import files
from visual_search.data import tables
from visual_search.data.datasets import read_product10k, read_training_table
from visual_search.data.dev_sets import read_dev_set, read_dev_table
from visual_search.data.leaks import list_images
from visual_search.data.schema import schema_errors
from visual_search.data.tables import image_items, read_gallery, read_queries, read_table

QUERY_COLUMNS = ["user_img_id", "img_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]


def training(path: Path) -> object:
    return read_training_table(path).class_names


def dev_table(path: Path) -> object:
    return read_dev_table(path, all_rows=True, leave_one_out=True).gallery_products.tolist()


def gallery(path: Path) -> object:
    return read_dev_set(path.parent, path.name, "queries.csv").gallery_products.tolist()


def queries(path: Path) -> object:
    return read_dev_set(path.parent, "gallery.csv", path.name).query_products.tolist()


def product10k(path: Path) -> object:
    return read_product10k(path.parent, [(path.name, ".")], 9).labels.tolist()


# Every reader of a table: what it calls the columns of the path and of the label, the columns that
# it wants besides, and a row of them.
READERS: dict[str, tuple[Callable[[Path], object], str, str, str, str]] = {
    "training": (training, "file_name", "label", "title", "t"),
    "pairs": (training, "image_path", "label", "title", "t"),
    "development table": (dev_table, "file_name", "label", "title", "t"),
    "gallery": (gallery, "img_path", "product_id", "seller_img_id", "1"),
    "queries": (
        queries,
        "img_path",
        "product_id",
        "user_img_id,bbox_x,bbox_y,bbox_w,bbox_h",
        "1,0,0,9,9",
    ),
    "Product10K": (product10k, "name", "class", "group", "1"),
    "leaks": (lambda path: list_images(path, None, True).paths, "file_name", "label", "title", "t"),
    "check_table": (lambda path: check(path).problems, "file_name", "label", "title", "t"),
}
# Tools that write tables of their own, from one like the training's.
TOOLS: dict[str, Callable[[Path], object]] = {
    "downsample_classes": lambda path: downsample([path], [0]),
    "filter_dataset_info": lambda path: filter_table(path, dedup=True),
    "get_kfold_split": write_folds,
    "get_train_test_split": lambda path: split_by_classes(path, "minmax"),
}


@pytest.fixture
def place(dev_folder: Path) -> Path:
    """A folder with a.png, b.png and c.png beside a good gallery.csv and queries.csv."""
    for letter in "abc":
        os.link(dev_folder / "gallery" / "0_0.png", dev_folder / f"{letter}.png")
    rows = ["1,a.png,5", "2,b.png,5"]
    (dev_folder / "gallery.csv").write_text("\n".join(["seller_img_id,img_path,product_id", *rows]))
    header = "user_img_id,img_path,bbox_x,bbox_y,bbox_w,bbox_h,product_id"
    (dev_folder / "queries.csv").write_text(f"{header}\n1,a.png,0,0,9,9,5\n")
    return dev_folder


def text_for(name: str, labels: list[str]) -> str:
    """A table of the images a.png, b.png, … with these labels, for a reader."""
    _, path, label, others, values = READERS[name]
    rows = [f"{letter}.png,{cell},{values}" for letter, cell in zip("abc", labels, strict=False)]
    return "\n".join([f"{path},{label},{others}", *rows]) + "\n"


BAD: list[tuple[Callable[[str], str | bytes], str]] = [
    (lambda text: "", "is empty; its first line must name its columns"),
    (
        lambda text: text.split("\n")[0] + "\n",
        "lists no|no (training )?row|[' ]width|has 0|only 0|no held-out|not one",
    ),
    (lambda text: text.replace("b.png", '"b.png'), "not a readable csv file: line 3"),
    (lambda text: text.replace("b.png", "b\0.png"), "line 3 has a zero byte"),
    (lambda text: text.replace("b.png", "b.png,b"), "line 3 has .* double quotes"),
    (
        lambda text: text.replace(",", ";").replace(".png", "1,5"),
        "line 2 has 2 cells.* with commas in place of ';'",
    ),
    (lambda text: text.replace("b.png,5,", "b.png,"), "line 3 has .* every empty cell"),
    (
        lambda text: text.replace("\n", ",\n").replace(",\n", "\n", 1),
        "line 2 has .* remove the commas at its end",
    ),
    (lambda text: "\n\n" + text.replace("b.png", "\n\nb.png,,"), "line 7 has"),
    (
        lambda text: text.replace("\n", ",title\n", 1).replace("title,t", "x,t"),
        "line 2 has|twice",
    ),
    (lambda text: text.encode("utf-16"), "it is not UTF-8"),
    (lambda text: text.replace("b.png", "\xfc").encode("latin-1"), "it is not UTF-8"),
]


@pytest.mark.parametrize("name", [*READERS, *TOOLS])
def test_a_bad_file_is_refused_by_every_reader(place: Path, name: str) -> None:
    read = TOOLS.get(name) or READERS[name][0]
    path, text = place / "t.csv", text_for("training" if name in TOOLS else name, ["5", "5", "5"])
    for change, message in BAD:
        changed = change(text)
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        before = sorted(place.iterdir())
        said = refused(message, read, path)
        assert "t.csv" in said or "--k is 5" in said
        assert sorted(place.iterdir()) == before
    refused(r"none\.csv.* does not exist", read, place / "none.csv")


@pytest.mark.parametrize("name", READERS)
def test_line_ends_and_byte_order_marks_are_no_matter(place: Path, name: str) -> None:
    path, text = place / "t.csv", text_for(name, ["5", "5", "6"])
    path.write_text(text)
    expected = READERS[name][0](path)
    for end in ("\n", "\r\n", "\r"):
        for mark in ("", "\ufeff"):
            path.write_bytes((mark + text.replace("\n", 2 * end)).encode())
            assert READERS[name][0](path) == expected
    # A column without a name is what a spreadsheet or pandas puts beside a table.
    path.write_text(text.replace("\n", ",\n"))
    assert READERS[name][0](path) == expected


def test_leading_zeros_count_unless_there_are_numbers_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "t.csv").write_text(text_for("queries", ["005", "5", "05.0"]))
    assert queries(place / "t.csv") == ["5", "5", "5"]
    (place / "t.csv").write_text(text_for("queries", ["005", "5", "x"]))
    assert queries(place / "t.csv") == ["005", "5", "x"]
    output = capsys.readouterr().err
    assert "'5' (line 2 of gallery.csv) and '005' (line 2 of t.csv)" in output
    assert "3 queries, 2 gallery images; 2 queries have no match in the gallery" in output
    (place / "t.csv").write_text(text_for("training", ["Wren", "wren", "owl"]))
    assert training(place / "t.csv") == ("Wren", "owl", "wren")
    assert "'Wren' (line 2) and 'wren' (line 3)" in capsys.readouterr().err
    (place / "t.csv").write_text(text_for("queries", ["x", "y", "z"]))
    refused(r"no query .*'x' \(line 2\) is none .* such as '5'", queries, place / "t.csv")


@pytest.mark.parametrize("name", ["gallery", "queries"])
def test_the_ranker_pays_with_the_bad_row_alone(place: Path, name: str) -> None:
    read = {"gallery": read_gallery, "queries": read_queries}[name]
    path = place / "t.csv"
    path.write_text(text_for(name, ["5", "5", "5"]))
    expected = image_items(read(path), place)
    lines = path.read_text().splitlines()
    # Commas at the end, too many and too few cells, a zero byte, bytes that are no UTF-8.
    for row, wrong in ((1, lines[1] + ",,,"), (2, f"x,{lines[2]},y"), (3, ""), (3, "c\0\xfc,5,1")):
        rows = [*lines[:row], wrong or "c.png", *lines[row + 1 :]]
        path.write_bytes("\n".join(rows).encode("latin-1"))
        items = image_items(read(path, forgiving=True), place)
        assert len(items) == 3
        for place_in_list, (item, good) in enumerate(zip(items, expected, strict=True), 1):
            assert item == good or place_in_list == row
    assert image_items(read(path, forgiving=True), place)[0].path.is_file()


@pytest.mark.parametrize("name", READERS)
def test_a_table_without_any_of_its_images_is_refused(place: Path, name: str) -> None:
    path = place / "t.csv"
    path.write_text(text_for(name, ["5", "5", "5"]).replace(".png", "\\.png"))
    if name == "check_table":
        assert len(check(path).problems) == 3
        return
    refused(r"none of the images of .*t\.csv .* write /|not one image", READERS[name][0], path)


def test_items_keep_boxes_and_empty_the_ones_that_are_none(tmp_path: Path) -> None:
    rows = [
        [0, "q/a.jpg", 1, 2, 30, 40],
        [1, "q/b.jpg", "", 2, 30, 40],
        [2, "q/c.jpg", "nan", "inf", "1e99", "zzz"],
        [3, "q/d.jpg", "1.6", 2, 30, 40],
    ]
    table = read_queries(write_csv(tmp_path / "queries.csv", QUERY_COLUMNS, rows))
    items = image_items(table, tmp_path)
    assert items[0].path == tmp_path / "q/a.jpg"
    assert [item.box for item in items] == [(1, 2, 30, 40), (0,) * 4, (0,) * 4, (2, 2, 30, 40)]


def found(**columns: list[str]) -> dict[str, list[int]]:
    return {error.column: error.rows.tolist() for error in schema_errors(pd.DataFrame(columns))}


@pytest.mark.parametrize(
    ("column", "right", "wrong"),
    [
        ("label", ["a", "0", "none"], ["", " ", "nan", "None", "NULL"]),
        ("is_test", ["0", "1", "1.0", "True", "no", ""], ["2", "maybe"]),
        ("evaluation_status", ["", "train", "Query", "gallery", "test"], ["probe"]),
        ("fold", ["-2", "-1", "0", "4.0"], ["-3", "", "1.5", "x", "inf"]),
        ("width", ["1", "640.0"], ["0", "-4", "", "wide", "nan"]),
        ("bbox_h", ["1"], ["0"]),
        ("hash", ["", "0123456789abcDEF"], ["0123", "0123456789abcdeg"]),
        ("product_id", ["0", "-1", "a7"], ["", "nan", "<NA>", " "]),
        ("bbox", ["", "1,2,3,4", "[1, 2.4, 3, 4]"], ["1,2,3", "1,2,3,4,5", "a,2,3,4", "1 2 3 4"]),
        ("anything else", ["", "x"], []),
    ],
)
def test_rules(column: str, right: list[str], wrong: list[str]) -> None:
    rows = [len(right) + row for row in range(len(wrong))]
    assert found(**{column: right + wrong}) == ({column: rows} if wrong else {})


@settings(deadline=None)
@given(st.lists(st.lists(st.text(st.sampled_from('a"\n,'), max_size=4), min_size=2, max_size=2)))
def test_lines_of_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    """Each row begins where the text written before it ended."""
    path: Path = tmp_path_factory.getbasetemp() / "lines.csv"
    text, expected = io.StringIO(), []
    writer = csv.writer(text, lineterminator="\n")
    for row in [["a", "b"], *rows]:
        expected.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    path.write_text(text.getvalue(), newline="")
    with mock.patch.object(tables, "ROWS_AT_ONCE", 2):  # wherever the chunks end
        assert read_table(path, ["a"]).index.tolist() == expected[1:]


@given(rows=st.lists(st.tuples(*[st.text('a \r\n,"', max_size=4)] * 2), max_size=4))
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("written") / "t.csv"
    files.write_csv(path, pd.DataFrame(rows, columns=["label", "note"], dtype=object))
    assert list(read_table(path, []).itertuples(index=False, name=None)) == rows
