from collections import Counter
from pathlib import Path

import pandas as pd

from dataset.downsample_classes import downsample, main
from tests.commands import inside, refused
from tests.conftest import write_csv


def table_of(file: Path, sizes: dict[str, int]) -> Path:
    rows = [
        [f"{label}/{i}.jpg", label, 0] for i in range(60) for label in sizes if i < sizes[label]
    ]
    rows += [[f"{label}/test.jpg", label, 1] for label in sizes]
    return write_csv(file, ["file_name", "label", "is_test"], rows)


def training(table: pd.DataFrame) -> dict[str, int]:
    return dict(Counter(table["label"][table["is_test"].astype(int) == 0]))


def test_more_images_than_the_threshold_and_at_most_n_a_class(tmp_path: Path) -> None:
    file = table_of(tmp_path / "a.csv", {"fifteen": 15, "sixteen": 16, "many": 50, "one": 1})
    before = file.read_bytes()
    written = downsample([file], [15], max_per_class=20)
    assert list(written) == [tmp_path / "a_downsampled.csv"]
    table = pd.read_csv(tmp_path / "a_downsampled.csv")
    assert training(table) == {"sixteen": 16, "many": 20}
    # Test rows stay, and rows keep their order.
    assert table["is_test"].sum() == 4
    source = pd.read_csv(file)
    kept = source[source["file_name"].isin(table["file_name"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, kept)
    assert file.read_bytes() == before
    assert training(downsample([file], [0], max_per_class=0)[tmp_path / "a_downsampled.csv"]) == {
        "fifteen": 15,
        "sixteen": 16,
        "many": 50,
        "one": 1,
    }


def test_several_tables_each_with_its_threshold(tmp_path: Path) -> None:
    first = table_of(tmp_path / "p" / "a.csv", {"x": 10, "y": 20, "z": 30})
    second = table_of(tmp_path / "q" / "a.csv", {"x": 10, "y": 20, "z": 30})
    written = downsample([first, second], [15, 25], max_per_class=5)
    assert [training(table) for table in written.values()] == [{"y": 5, "z": 5}, {"z": 5}]
    assert [path.parent.name for path in written] == ["p", "q"]
    # Of the three classes of both tables, two.
    totals = set()
    for seed in range(12):
        answer = downsample([first, second], [15, 25], 5, 2, random_seed=seed)
        classes = [len(training(table)) for table in answer.values()]
        assert sum(classes) == 2
        totals.add(tuple(classes))
    assert totals == {(2, 0), (1, 1)}


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    file = table_of(tmp_path / "a.csv", {f"c{i}": 30 for i in range(20)})
    first, again, other = (
        next(iter(downsample([file], [3], 4, 7, random_seed=seed).values())) for seed in (5, 5, 6)
    )
    pd.testing.assert_frame_equal(first, again)
    assert set(training(first).values()) == {4}
    assert len(training(first)) == 7
    assert not first.equals(other)
    # A table's images are drawn alike, whatever stands beside it.
    friend = table_of(tmp_path / "b.csv", {"d": 9})
    alone = downsample([file], [3], 4, random_seed=5)[tmp_path / "a_downsampled.csv"]
    beside = downsample([friend, file], [3], 4, random_seed=5)[tmp_path / "a_downsampled.csv"]
    pd.testing.assert_frame_equal(alone, beside)


def test_bad_input_is_named(tmp_path: Path) -> None:
    file = table_of(tmp_path / "a.csv", {"x": 10})
    refused(r"no class of .*a\.csv has more than 10 training images", downsample, [file], [10])
    refused("--threshold has 2 numbers for 1 tables", downsample, [file], [10, 20])
    refused("names a table twice", downsample, [file, file], [1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    done = inside(main, "--dataset_info", file)
    assert "a_downsampled.csv: 11 images of 1 classes" in done.stdout
    assert "next: " in done.stdout
