import shlex
from collections.abc import Callable
from pathlib import Path

import jsonargparse
import numpy as np
import pandas as pd
import pytest

from dataset import get_kfold_split, get_train_test_split
from dataset.get_kfold_split import parse_arguments, write_folds
from dataset.get_train_test_split import split_by_classes
from tests.commands import inside, refused, stopped, told
from tests.conftest import draw_product, write_csv
from visual_search.config_reader import parse_phase
from visual_search.data.datasets import read_training_table

HEADER = ["file_name", "label", "width", "height", "is_test"]


def table_of(folder: Path, sizes: dict[str, int], test: dict[str, int] | None = None) -> Path:
    """`label: images` that train, and that test."""
    rows = [
        [f"{label}/{image}_{is_test}.jpg", label, 64, 48, is_test]
        for is_test, part in ((0, sizes), (1, test or {}))
        for label, images in part.items()
        for image in range(images)
    ]
    return write_csv(folder / "dataset_info.csv", HEADER, rows)


def test_the_three_files_and_how_training_reads_them(tmp_path: Path) -> None:
    file = table_of(tmp_path, {"a": 10, "b": 5, "c": 7}, test={"a": 2, "z": 3})
    source, before = pd.read_csv(file), file.read_bytes()
    for name in source["file_name"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw_product(0, 0, 20).save(tmp_path / name)
    written = write_folds(file)
    assert list(written) == ["folds.csv", "folds_train_only.csv", "folds_test_only.csv"]
    for name in written:
        part = pd.read_csv(tmp_path / name)
        assert list(part.columns) == [*HEADER, "fold"]
        pd.testing.assert_frame_equal(part[HEADER[:4]], source[HEADER[:4]])
    folds = pd.read_csv(tmp_path / "folds.csv")
    # Test rows always test; the others are spread.
    assert folds["fold"][source["is_test"] == 1].tolist() == [-2] * 5
    spread = folds[source["is_test"] == 0]
    counts = pd.crosstab(spread["label"], spread["fold"]).to_numpy()
    assert sorted(sorted(row) for row in counts) == [[1] * 5, [1, 1, 1, 2, 2], [2] * 5]
    assert len(read_training_table(tmp_path / "folds.csv")) == 22
    held_out = int((spread["fold"] == 1).sum())
    assert len(read_training_table(tmp_path / "folds.csv", fold=1)) == 22 - held_out
    assert len(read_training_table(tmp_path / "folds_train_only.csv")) == 27
    words = "all of its 27 rows are test rows"
    refused(words, read_training_table, tmp_path / "folds_test_only.csv")
    assert file.read_bytes() == before
    assert sorted(tmp_path.glob("*.csv")) == sorted([file, *(tmp_path / name for name in written)])


def test_a_query_gallery_protocol_is_kept(tmp_path: Path) -> None:
    rows = [["a.jpg", "x", "train"], ["b.jpg", "x", "train"], ["c.jpg", "y", "query"]]
    rows += [["d.jpg", "y", "gallery"], ["e.jpg", "z", ""]]
    file = write_csv(tmp_path / "info.csv", ["file_name", "label", "evaluation_status"], rows)
    folds, train, test = write_folds(file, k=2).values()
    assert folds["fold"][2:4].tolist() == [-2, -2]
    assert sorted(folds["fold"].iloc[[0, 1, 4]]) in ([0, 0, 1], [0, 1, 1])
    assert folds["evaluation_status"].tolist() == [row[2] for row in rows]
    assert train["evaluation_status"].tolist() == ["train"] * 5
    assert test["evaluation_status"].tolist() == ["test", "test", "query", "gallery", "test"]


def test_fixed_rows_of_an_earlier_split_stay(tmp_path: Path) -> None:
    rows = [[f"{i}.jpg", "x", fold] for i, fold in enumerate((-1, -2, 0, 1, 2, 0, 1))]
    file = write_csv(tmp_path / "folds.csv", ["file_name", "label", "fold"], rows)
    folds = write_folds(file, k=5, save_name="again")["again.csv"]["fold"].tolist()
    assert folds[:2] == [-1, -2]
    assert sorted(folds[2:]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("whole_classes", [False, True])
def test_rows_of_one_image_stay_together(whole_classes: bool, tmp_path: Path) -> None:
    """Two boxes an image: what trains must not be judged."""
    names = [f"{'./' * (box % 2)}{i}.jpg" for box in range(2) for i in range(40)]
    rows = [[name, f"c{i % 40 % 8}", f"{i},0,9,9"] for i, name in enumerate(names)]
    file = write_csv(tmp_path / "info.csv", ["file_name", "label", "bbox"], rows)
    folds = write_folds(file, k=4, whole_classes=whole_classes)["folds.csv"]["fold"].to_numpy()
    assert folds[:40].tolist() == folds[40:].tolist()
    assert np.bincount(folds).tolist() == [20] * 4


@pytest.mark.parametrize("split", [write_folds, lambda f: split_by_classes(f, "minmax")])
@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["b.jpg,x,0", "./a.jpg,y,0"], "lines 2 and 4: .* of two classes"),
        (["b.jpg,x,0", "", "a.jpg,x,1"], "lines 2 and 5: .* in two parts of the split"),
    ],
)
def test_an_image_that_would_train_and_be_judged_is_refused(
    cells: list[str], words: str, split: Callable[[Path], object], tmp_path: Path
) -> None:
    file = tmp_path / "info.csv"
    more = [f"{i}.jpg,x,0" for i in range(4)]
    file.write_text("\n".join(["file_name,label,is_test", "a.jpg,x,0", *cells, *more]))
    refused(words, split, file)
    assert [path.name for path in tmp_path.iterdir()] == ["info.csv"]


def test_defaults_are_the_documented_ones() -> None:
    values = parse_arguments(["--dataset_info", "x.csv"])
    assert (values.k, values.random_seed, values.save_name) == (5, 28, "folds")
    assert values.split_type is None
    values = get_train_test_split.parse_arguments(["--dataset_info", "x.csv"])
    assert (values.split_type, values.random_seed) == ("freq", 28)
    assert (values.min_n_samples, values.max_n_samples) == (3, 50)
    assert (values.test_ratio, values.min_freq) == (0.1, 10)


def test_bad_input_is_named(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "i.csv", ["file_name", "label"], [])
    refused("--save_name 'a/b' must be a plain file name", write_folds, file, save_name="a/b")
    refused(f"{file} has no row to spread", write_folds, file)
    assert [path.name for path in tmp_path.iterdir()] == ["i.csv"]


def test_folds_from_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "Mein Laden"
    folder.mkdir()
    file = table_of(folder, {"a": 4, "b": 2, "c": 2}, test={"a": 1})
    options = ["--dataset_info", file, "--k", 2, "--save_name", "halves", "--whole_classes"]
    done = inside(get_kfold_split.main, *options)
    folds = str(folder / "halves.csv")
    typed = shlex.split(done.stdout.splitlines()[-1])
    assert typed[1:4] == ["python", "-m", "visual_search.main_arcface"]
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--name")
    phase = parse_phase(parser, typed[4:])[1]
    assert phase.dataset.tables[0].file == phase.dataset.dev_set.table == folds
    assert phase.dataset.tables[0].fold == phase.dataset.dev_set.fold == 0
    assert "halves.csv: 9 rows; fold -2: 1, fold 0: 4, fold 1: 4" in done.stdout
    assert "halves_train_only.csv: 9 rows; fold -1: 9\n" in done.stdout
    assert "halves_test_only.csv: 9 rows; fold -2: 9\n" in done.stdout
    table = pd.read_csv(folds).query("fold >= 0")
    assert table.groupby("label")["fold"].nunique().tolist() == [1, 1, 1]
    assert stopped(get_kfold_split.main, *options, "--k", 9).startswith("error: --k is 9")
    assert "makes no folds" in stopped(get_kfold_split.main, *options, "--split_type", "freq")
    # By classes, as the command next to it does.
    for main in (get_kfold_split.main, get_train_test_split.main):
        said = told(main, "--dataset_info", file, "--split_type", "minmax")
        assert "dataset_test.csv: 4 images of 2 classes" in said
