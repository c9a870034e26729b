"""One rule for a table that is wrong, whichever tool reads it: file, line, and what to write."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dataset.check_table import check
from dataset.downsample_classes import downsample
from dataset.filter_dataset_info import filter_table
from dataset.get_kfold_split import write_folds
from dataset.get_train_test_split import SplitRule, split_by_classes
from tests.commands import refused
from tests.conftest import draw_product
from visual_search.common.errors import UserError
from visual_search.data.datasets import read_training_table
from visual_search.data.leaks import list_images


def checked(file: Path) -> None:
    for problem in check(file).problems:
        raise UserError(f"{file} line {problem.line}: {problem.column} {problem.what}")


READERS: dict[str, Callable[[Path], object]] = {
    "check_table": checked,
    "downsample_classes": lambda file: downsample([file], [0]),
    "filter_dataset_info": lambda file: filter_table(file, dedup=True),
    "find_leaks": lambda file: list_images(file, None, True, -1),
    "get_kfold_split": write_folds,
    "get_train_test_split": lambda file: split_by_classes(file, SplitRule("minmax")),
    "training": read_training_table,
}

HEADER = "file_name,label,is_test,fold"
BAD = {
    "blank label": (f"{HEADER}\na.png,x,0,0\nb.png,,0,0\n", r"line 3: label is ''; it must not be"),
    "blank lines": (f"{HEADER}\n\na.png,x,0,0\n\nb.png, ,0,0\n", r"line 5: label is ' '"),
    "lines within cells": (f"{HEADER},t\na.png,x,0,0,'\n'\nb.png,x,2,0,t\n", "line 4: is_test"),
    "byte-order mark": (f"\ufeff{HEADER}\na.png,x,maybe,0\n", "line 2: is_test is 'maybe'"),
    "bad hash": ("file_name,label,hash\na.png,x,xyz\n", "line 2: hash is 'xyz'; write 16"),
    "old line ends": (f"{HEADER}\ra.png,x,0,0\rb.png,x,0,half\r", "line 3: fold is 'half'"),
    "zero byte": (f"{HEADER}\na.png,x,0,0\nb\0.png,x,0,0\n", "line 3"),
    "other columns": ("name,label\na.png,x\n", "one of the columns"),
    "no label": ("file_name,class\na.png,x\n", "no column '?label"),
    "nothing": ("", "is empty"),
    "commas at the end": (f"{HEADER}\na.png,x,0,0,\n", "line 2"),
    "a cell too many": (f"{HEADER}\na.png,x,0,0\na.png,x,0,0,1\n", "line 3"),
    "a quote that stays open": (f'{HEADER}\n"a.png,x,0,0\n', "not a readable csv"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_table_is_told_alike(reader: str, bad: str, tmp_path: Path) -> None:
    text, words = BAD[bad]
    for name in "ab":
        draw_product(1, 1).save(tmp_path / f"{name}.png")
    file = tmp_path / "t.csv"
    file.write_text(text.replace("'\n'", '"two\nlines"'), encoding="utf-8", newline="")
    with pytest.raises(UserError, match=words) as caught:
        READERS[reader](file)
    assert str(file) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "t.csv"]
    refused(r"none\.csv does not exist", READERS[reader], tmp_path / "none.csv")
