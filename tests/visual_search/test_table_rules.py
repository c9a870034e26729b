from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import write_csv
from visual_search.table_rules import boxes_of, faults
from visual_search.tables import line_numbers


def found(**columns: list[str]) -> dict[str, list[int]]:
    return {fault.column: fault.rows.tolist() for fault in faults(pd.DataFrame(columns))}


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
def test_boxes_lie_within_their_photos(rows: list[tuple[int, ...]]) -> None:
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
    wrong = {row for fault in faults(table) for row in fault.rows.tolist()}
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
