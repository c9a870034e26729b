from pathlib import Path

import pandas as pd
import pytest

from dataset.get_train_test_split import split_by_classes
from tests.commands import refused
from tests.conftest import write_csv

SIDES = ("train", "test")


def table_of(folder: Path, sizes: dict[str, int]) -> Path:
    rows = [
        [f"{label}/{image}.jpg", label, f"{image},0,9,9", 64, 48, "", 0]
        for image in range(max(sizes.values()))
        for label in sizes
        if image < sizes[label]
    ]
    header = ["file_name", "label", "bbox", "width", "height", "evaluation_status", "is_test"]
    return write_csv(folder / "dataset_info.csv", header, rows)


def written(folder: Path, kind: str = "dataset") -> list[pd.DataFrame]:
    """What trains and what tests."""
    names = [folder / f"{kind}_{name}.csv" for name in SIDES]
    return [pd.read_csv(name, keep_default_na=False) for name in names]


def test_minmax_puts_classes_of_3_to_50_images_into_the_training(tmp_path: Path) -> None:
    file = table_of(tmp_path, {"two": 2, "three": 3, "fifty": 50, "fifty-one": 51})
    rows = split_by_classes(file, "minmax")
    assert list(rows) == [f"{kind}_{side}.csv" for kind in ("dataset", "classes") for side in SIDES]
    assert list(rows.values()) == [53, 53, 2, 2]
    source = pd.read_csv(file, keep_default_na=False)
    kept = ["file_name", "label", "bbox", "width", "height"]
    expected = [{"three": 3, "fifty": 50}, {"two": 2, "fifty-one": 51}]
    for test, (part, classes) in enumerate(
        zip(written(tmp_path), written(tmp_path, "classes"), strict=True)
    ):
        assert set(part["is_test"]) == {test}
        assert set(part["evaluation_status"]) == {SIDES[test]}
        assert dict(classes.to_numpy()) == expected[test]
        # No row is lost, and the other columns are as they were, in their order.
        theirs = source[source["label"].isin(expected[test])][kept].reset_index(drop=True)
        pd.testing.assert_frame_equal(part[kept], theirs)


def test_freq_is_drawn_by_the_seed_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    file = table_of(tmp_path, {f"a{i}": 4 for i in range(20)} | {f"c{i}": 9 for i in range(9)})
    header, *lines = file.read_text().splitlines(keepends=True)
    drawn = []
    for seed, rows in ((0, lines), (0, sorted(lines)), (1, lines), (2, lines)):
        file.write_text("".join([header, *rows]))
        split_by_classes(file, random_seed=seed)
        drawn.append(sorted(set(written(tmp_path)[1]["label"])))
    assert drawn[0] == drawn[1]
    assert len(set(map(tuple, drawn))) > 1
    split_by_classes(file, test_ratio=0.5, min_freq=9)
    train, test = (set(part["label"]) for part in written(tmp_path))
    assert not train & test
    assert sorted(label[0] for label in test) == ["a"] * 10 + ["c"] * 5


def test_a_test_split_that_is_there_already_stays_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[f"{i}.jpg", "seen", 0] for i in range(4)] + [["q.jpg", "seen", 1]]
    rows += [["r.jpg", "rare", 0], ["s.jpg", "other", 1]]
    file = write_csv(tmp_path / "dataset_info.csv", ["file_name", "label", "is_test"], rows)
    split_by_classes(file, "minmax")
    assert "2 images of the test split" in capsys.readouterr().out
    names = [part["file_name"].tolist() for part in written(tmp_path)]
    assert names == [["0.jpg", "1.jpg", "2.jpg", "3.jpg"], ["r.jpg"]]


def test_bad_input_is_named(tmp_path: Path) -> None:
    file = table_of(tmp_path, {"a": 4, "b": 5})
    refused("lower --min_freq", split_by_classes, file)
    file.write_text("file_name,label,is_test\na.jpg,x,1\n")
    refused("no training row to split", split_by_classes, file)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_info.csv"]
