from pathlib import Path

import pandas as pd
import pytest

from dataset.get_train_test_split import split_by_classes
from tests.commands import refused
from tests.conftest import write_csv


def table_of(folder: Path, sizes: dict[str, int]) -> Path:
    rows = [
        [f"{label}/{image}.jpg", label, f"{image},0,9,9", 64, 48, "", 0]
        for image in range(max(sizes.values()))
        for label in sizes
        if image < sizes[label]
    ]
    header = ["file_name", "label", "bbox", "width", "height", "evaluation_status", "is_test"]
    return write_csv(folder / "dataset_info.csv", header, rows)


def sides(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    train, test = (
        pd.read_csv(folder / f"dataset_{name}.csv", keep_default_na=False)
        for name in ("train", "test")
    )
    return train, test


def test_minmax_puts_classes_of_3_to_50_images_into_the_training(tmp_path: Path) -> None:
    sizes = {"two": 2, "three": 3, "fifty": 50, "fifty-one": 51}
    file = table_of(tmp_path, sizes)
    rows = split_by_classes(file, "minmax")
    train, test = sides(tmp_path)
    assert set(train["label"]) == {"three", "fifty"}
    assert set(test["label"]) == {"two", "fifty-one"}
    assert rows == {
        "dataset_train.csv": 53,
        "dataset_test.csv": 53,
        "classes_train.csv": 2,
        "classes_test.csv": 2,
    }
    assert set(train["is_test"]) == {0}
    assert set(test["is_test"]) == {1}
    assert set(train["evaluation_status"]) == {"train"}
    assert set(test["evaluation_status"]) == {"test"}
    # No row is lost, none is twice, and the other columns are as they were, in their order.
    source = pd.read_csv(file, keep_default_na=False)
    kept = ["file_name", "label", "bbox", "width", "height"]
    for part in (train, test):
        expected = source[source["file_name"].isin(part["file_name"])][kept]
        pd.testing.assert_frame_equal(part[kept], expected.reset_index(drop=True))
    assert sorted([*train["file_name"], *test["file_name"]]) == sorted(source["file_name"])
    classes = [pd.read_csv(tmp_path / f"classes_{name}.csv") for name in ("train", "test")]
    assert dict(zip(*classes[0].T.to_numpy(), strict=True)) == {"three": 3, "fifty": 50}
    assert dict(zip(*classes[1].T.to_numpy(), strict=True)) == {"two": 2, "fifty-one": 51}


def test_freq_is_drawn_by_the_seed(tmp_path: Path) -> None:
    file = table_of(tmp_path, {f"a{i}": 4 for i in range(20)} | {f"c{i}": 9 for i in range(9)})
    drawn = []
    for seed in (0, 0, 1, 2):
        split_by_classes(file, random_seed=seed)
        drawn.append((tmp_path / "dataset_test.csv").read_bytes())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    split_by_classes(file, test_ratio=0.5, min_freq=9)
    train, test = sides(tmp_path)
    assert not set(train["label"]) & set(test["label"])
    assert sorted(label[0] for label in set(test["label"])) == ["a"] * 10 + ["c"] * 5


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    file = table_of(tmp_path, {f"a{i}": 4 for i in range(20)})
    split_by_classes(file)
    before = set(sides(tmp_path)[1]["label"])
    header, *lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([header, *sorted(lines)]))
    split_by_classes(file)
    assert set(sides(tmp_path)[1]["label"]) == before


def test_a_test_split_that_is_there_already_stays_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[f"{i}.jpg", "seen", 0] for i in range(4)] + [["q.jpg", "seen", 1]]
    rows += [["r.jpg", "rare", 0], ["s.jpg", "other", 1]]
    file = write_csv(tmp_path / "dataset_info.csv", ["file_name", "label", "is_test"], rows)
    split_by_classes(file, "minmax")
    assert "2 images of the test split" in capsys.readouterr().out
    train, test = sides(tmp_path)
    assert train["file_name"].tolist() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert test["file_name"].tolist() == ["r.jpg"]


def test_bad_input_is_named(tmp_path: Path) -> None:
    file = table_of(tmp_path, {"a": 4, "b": 5})
    refused("lower --min_freq", split_by_classes, file)
    file.write_text("file_name,label,is_test\na.jpg,x,1\n")
    refused("no training row to split", split_by_classes, file)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_info.csv"]
