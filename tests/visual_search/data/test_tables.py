from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import write_csv
from visual_search.common.errors import UserError
from visual_search.data.tables import (
    boxes_of,
    check_boxes,
    image_items,
    integers,
    line_numbers,
    read_gallery,
    read_queries,
    read_table,
    schema_errors,
)

QUERY_COLUMNS = ["user_img_id", "img_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]


def refusal(call: object, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)  # type: ignore[operator]
    return str(caught.value)


def test_missing_folder_file_and_column_are_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no") in refusal(read_table, tmp_path / "no" / "a.csv", ["x"])
    assert str(tmp_path / "a.csv") in refusal(read_table, tmp_path / "a.csv", ["x"])
    path = write_csv(tmp_path / "b.csv", ["name", "klass"], [["a.jpg", 1]])
    message = refusal(read_table, path, ["name", "class"])
    assert "b.csv" in message
    assert "'class'" in message
    assert "'klass'" in message


def test_files_that_are_no_csv(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "ragged.csv").write_text('a,b\n1,2\n1,2,3,4\n"')
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00a,b")
    for name in ("empty.csv", "ragged.csv", "binary.csv"):
        assert name in refusal(read_table, tmp_path / name, ["a"])


def test_spreadsheet_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "bom.csv"
    path.write_bytes("\ufeffname,class\nfoto ё.jpg,1\n".encode())
    assert read_table(path, ["name"])["name"].tolist() == ["foto ё.jpg"]


def test_numbers_are_refused_with_their_line(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", ["n"], [[1], ["2.0"], ["x"], [""]])
    table = read_table(path, ["n"])
    message = refusal(integers, table, "n", path)
    assert "t.csv line 4: n is 'x'" in message
    assert "1 more" in message
    assert integers(table[:2], "n", path).tolist() == [1, 2]


def test_empty_gallery_and_queries(tmp_path: Path) -> None:
    gallery = write_csv(tmp_path / "gallery.csv", ["seller_img_id", "img_path"], [])
    queries = write_csv(tmp_path / "queries.csv", QUERY_COLUMNS, [])
    assert "no gallery image" in refusal(read_gallery, gallery)
    assert "no query" in refusal(read_queries, queries)


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


def test_boxes_without_area_are_refused_with_their_line(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "queries.csv",
        QUERY_COLUMNS,
        [[0, "a", 1, 2, 3, 4], [1, "b", 1, 2, 3, 0], [2, "c", 1, 2, 3, 4]],
    )
    assert "line 3: bbox_h is '0'" in refusal(check_boxes, read_queries(path), path)


def found(**columns: list[str]) -> dict[str, list[int]]:
    return {error.column: error.rows.tolist() for error in schema_errors(pd.DataFrame(columns))}


@pytest.mark.parametrize(
    ("column", "right", "wrong"),
    [
        ("label", ["a", "0"], ["", " "]),
        ("is_test", ["0", "1", "1.0", "True", "no", ""], ["2", "maybe"]),
        ("evaluation_status", ["", "train", "Query", "gallery", "test"], ["probe"]),
        ("fold", ["-2", "-1", "0", "4.0"], ["-3", "", "1.5", "x", "inf"]),
        ("width", ["1", "640.0"], ["0", "-4", "", "wide", "nan"]),
        ("hash", ["", "0123456789abcDEF"], ["0123", "0123456789abcdeg"]),
        ("product_id", ["0", "-1", "7"], ["", "a7"]),
        ("bbox", ["", "1,2,3,4", "[1, 2.4, 3, 4]"], ["1,2,3", "1,2,3,4,5", "a,2,3,4", "1 2 3 4"]),
        ("anything else", ["", "x"], []),
    ],
)
def test_rules(column: str, right: list[str], wrong: list[str]) -> None:
    rows = [len(right) + row for row in range(len(wrong))]
    assert found(**{column: right + wrong}) == ({column: rows} if wrong else {})


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(-3, 12)] * 4, st.integers(1, 9), st.integers(1, 9)), min_size=1
    )
)
def test_boxes_lie_within_their_images(rows: list[tuple[int, ...]]) -> None:
    expected = []
    for number, (x, y, w, h, width, height) in enumerate(rows):
        inside = all(0 <= left < width for left in (x, x + w - 1)) and all(
            0 <= top < height for top in (y, y + h - 1)
        )
        if w <= 0 or h <= 0 or not inside:
            expected.append(number)
    table = pd.DataFrame(
        {
            "bbox": [",".join(map(str, row[:4])) for row in rows],
            "width": [str(row[4]) for row in rows],
            "height": [str(row[5]) for row in rows],
        }
    )
    wrong = {row for error in schema_errors(table) for row in error.rows.tolist()}
    assert sorted(wrong) == expected
    boxes, given_cells = boxes_of(table["bbox"])
    assert given_cells.all()
    np.testing.assert_array_equal(boxes, [row[:4] for row in rows])


@settings(deadline=None)
@given(st.lists(st.lists(st.text(st.sampled_from('a"\n,'), max_size=4), min_size=2, max_size=2)))
def test_lines_of_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    """Each row begins where the text written before it ended."""
    path: Path = tmp_path_factory.getbasetemp() / "lines.csv"
    expected = []
    for number in range(len(rows)):
        write_csv(path, ["a", "b"], rows[:number])
        expected.append(path.read_text().count("\n") + 1)
    write_csv(path, ["a", "b"], rows)
    with path.open(newline="") as handle:
        assert len(list(csv.reader(handle))) == len(rows) + 1
    assert list(line_numbers(path)) == expected
