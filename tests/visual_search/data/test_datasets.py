import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.commands import refused
from tests.conftest import draw_product, write_csv
from visual_search.common.dataset_config import DatasetConfig, Product10KConfig, TableConfig
from visual_search.common.errors import UserError
from visual_search.data import factory
from visual_search.data.augment import build_augmentation
from visual_search.data.datasets import (
    LabelledImages,
    PathList,
    TrainingImages,
    combined,
    read_product10k,
    read_training_table,
)


def test_product10k_is_read_by_column_name(product10k_folder: Path) -> None:
    images = read_product10k(product10k_folder, [("train.csv", "train")], 10)
    assert len(images) == 24
    assert images.paths[5] == product10k_folder / "train" / "1_1.png"
    assert images.labels[5] == 1
    assert images.counts(10).tolist() == [4] * 6 + [0] * 4
    assert images.classes == 10
    # The test list has another order of columns and another third one.
    rows = [["x", 3, "2_4.png"], ["x", 4, "3_4.png"]]
    write_csv(product10k_folder / "test_kaggletest.csv", ["Usage", "class", "name"], rows)
    lists = [("train.csv", "train"), ("test_kaggletest.csv", "test")]
    both = read_product10k(product10k_folder, lists, 10)
    assert len(both) == 26
    assert both.labels[-2:].tolist() == [3, 4]
    assert both.paths[-1] == product10k_folder / "test" / "3_4.png"


@pytest.mark.parametrize(
    ("folder", "names", "classes", "words"),
    [
        (".", ("train.csv", "train"), 3, r"train.csv line 14: class 3 .*num_of_classes = 3"),
        (".", ("train.csv", "nowhere"), 10, "lists images in it"),
        (".", ("test_kaggletest.csv", "train"), 10, "none of the images"),
        ("elsewhere", ("train.csv", "train"), 10, r"elsewhere does not exist.*train_valid_root"),
        (".", ("none.csv", "train"), 10, "lists no image"),
        (".", ("words.csv", "train"), 10, r"words\.csv line 3: class is 'x'.*1 more"),
    ],
)
def test_faults_of_the_list_are_named(
    product10k_folder: Path, folder: str, names: tuple[str, str], classes: int, words: str
) -> None:
    write_csv(product10k_folder / "none.csv", ["name", "class"], [])
    rows = [["0_0.png", "0.0"], ["0_1.png", "x"], ["0_2.png", ""]]
    write_csv(product10k_folder / "words.csv", ["name", "class"], rows)
    refused(words, read_product10k, product10k_folder / folder, [names], classes)


def training_images(folder: Path, seed: int = 1) -> TrainingImages:
    images = read_product10k(folder, [("train.csv", "train")], 6)
    return TrainingImages(images, build_augmentation("phone", 32), 32, seed)


def test_draws_depend_on_seed_epoch_and_index_alone(product10k_folder: Path) -> None:
    images = training_images(product10k_folder)
    images.set_epoch(1)
    alone = [images[index][0] for index in range(8)]
    torch.manual_seed(123)
    for workers in (0, 2):
        loader = DataLoader(images, batch_size=4, num_workers=workers)
        batches = [batch[0] for batch, _ in zip(loader, range(2), strict=False)]
        assert torch.equal(torch.cat(batches), torch.stack(alone))
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    images[0]  # leaves the draws of others alone
    assert torch.equal(torch.rand(3), expected)
    assert images[3][1:] == images[3 + 24][1:] == (0, 3, 0)
    assert not torch.equal(images[3][0], images[3 + 24][0])  # one that comes again
    images.set_epoch(2)
    assert not torch.equal(images[0][0], alone[0])
    other_seed = training_images(product10k_folder, seed=2)
    other_seed.set_epoch(1)
    assert not torch.equal(other_seed[0][0], alone[0])


def test_a_new_epoch_reaches_running_workers(product10k_folder: Path) -> None:
    images = training_images(product10k_folder)
    loader = DataLoader(images, batch_size=24, num_workers=1, persistent_workers=True)
    seen = []
    for epoch in (1, 2):
        images.set_epoch(epoch)
        seen += [batch[0] for batch in loader]
        assert torch.equal(seen[-1][3], images[3][0])
    assert not torch.equal(seen[0], seen[1])


def test_the_stand_in_is_of_the_same_class_where_there_is_one(product10k_folder: Path) -> None:
    labels = np.array([0, 1, 0, 1, 2])
    paths = [product10k_folder / "train" / f"{c}_{i}.png" for i, c in enumerate([0, 1, 0, 1])]
    paths.append(product10k_folder / "train" / "2_0.png")
    for broken in (0, 3, 4):
        paths[broken].write_bytes(b"no image")
    images = TrainingImages(
        LabelledImages(paths, labels), build_augmentation("none", 16), 16, seed=1
    )
    # (label shown, photo asked for, photos passed over), by hand.
    assert images[0][1:] == (0, 0, 1)
    assert images[3][1:] == (1, 3, 1)
    # Class 2 has no other photo: 0 is broken too, 1 is the first that can be read.
    assert images[4][1:] == (1, 4, 2)
    assert images.unreadable(4, 2) == [paths[4], paths[0]]
    assert torch.equal(images[0][0], images[2][0])
    for path in paths:
        path.write_bytes(b"no image")
    refused("none of the training images", images.__getitem__, 0)


def test_boxes_are_cut_out(tmp_path: Path) -> None:
    draw_product(1, 0, 40).save(tmp_path / "whole.png")
    draw_product(1, 0, 40).crop((10, 5, 30, 35)).save(tmp_path / "cut.png")
    labelled = LabelledImages(
        [tmp_path / "whole.png", tmp_path / "whole.png", tmp_path / "cut.png"],
        np.array([0, 0, 0]),
        np.array([[10, 5, 20, 30], [0, 0, 0, 0], [0, 0, 0, 0]]),
    )
    images = TrainingImages(labelled, build_augmentation("none", 16), 16, seed=1)
    assert torch.equal(images[0][0], images[2][0])
    assert not torch.equal(images[0][0], images[1][0])


def test_data_sets_of_other_classes_are_numbered_behind(product10k_folder: Path) -> None:
    product10k = read_product10k(product10k_folder, [("train.csv", "train")], 10)
    boxes = np.array([[1, 2, 3, 4], [0, 0, 0, 0]])
    amazon = LabelledImages([Path("x"), Path("y")], np.array([1, 0]), boxes, ("n/a", "n/b"))
    plain = LabelledImages([Path("z")], np.array([0]))
    images = combined([product10k, amazon, plain], [1.0, 0.5, 2.0])
    assert len(images) == 27
    assert images.labels[:24].tolist() == product10k.labels.tolist()
    assert images.labels[24:].tolist() == [11, 10, 12]
    assert images.classes == 13
    assert images.class_names[9:] == ("9", "n/a", "n/b", "0")
    assert images.sources is not None
    assert images.sources.tolist() == [0] * 24 + [1, 1, 2]
    assert images.source_weights == (1.0, 0.5, 2.0)
    assert images.item(23).box is None
    assert images.item(24).box == (1, 2, 3, 4)
    assert images.item(25).box is None
    assert images.item(26).path == Path("z")


@given(st.lists(st.lists(st.text("abö/.", min_size=1), max_size=6), min_size=1, max_size=4))
def test_a_path_list_is_a_list_of_paths(parts: list[list[str]]) -> None:
    expected = [Path(name) for part in parts for name in part]
    paths = PathList.concatenated([PathList(part) for part in parts])
    assert list(paths) == expected
    assert len(paths) == len(expected)
    assert paths[1:-1] == expected[1:-1]
    assert [paths[i - len(expected)] for i in range(len(expected))] == expected
    assert list(pickle.loads(pickle.dumps(paths))) == expected
    with pytest.raises(IndexError):
        paths[len(expected)]
    refused("is not UTF-8: rename it", PathList, ["a", os.fsdecode(b"\xff.jpg")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight photos a.png … h.png in a folder `photos`."""
    (tmp_path / "photos").mkdir()
    for number, letter in enumerate("abcdefgh"):
        draw_product(number, 0, 40).save(tmp_path / "photos" / f"{letter}.png")
    return tmp_path


def table(folder: Path, columns: str, rows: list[list[object]]) -> Path:
    return write_csv(folder / "photos" / "table.csv", columns.split(","), rows)


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


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ("photo,label", [["a.png", 1]], "'image_path'.*'file_name'.*it has 'photo', 'label'"),
        ("file_name,label,bbox", [["a.png", 1, ""], ["b.png", 1, "1,2,3"]], "line 3: bbox"),
        ("file_name,label,bbox", [["a.png", 1, "1,2,0,4"]], "line 2: bbox.*above 0"),
        ("file_name,label,is_test", [["a.png", 1, 1]], "no row to train on: all of its 1 rows"),
        ("file_name,label,fold", [["a.png", 1, 2], ["b.png", 1, 4]], "no fold 1 .* folds: 2, 4"),
        ("file_name,label", [["a.png", 1]], "no column 'fold', so fold 1 cannot be held out"),
    ],
)
def test_faults_are_named(
    folder: Path, columns: str, rows: list[list[object]], message: str
) -> None:
    fold = 1 if "fold" in message else -1
    file = table(folder, columns, rows)
    assert "table.csv" in refused(message, read_training_table, file, fold=fold)


def test_a_table_most_of_whose_photos_are_missing(folder: Path) -> None:
    rows: list[list[object]] = [[f"{letter}.png", 1] for letter in "abcuvwx"]
    file = table(folder, "file_name,label", rows)
    words = r"4 of 7 images .* are not in .*, for example .*u\.png"
    refused(words, read_training_table, file)
    assert len(read_training_table(table(folder, "file_name,label", rows[:6])).paths) == 6


@pytest.mark.parametrize("again", ["t.csv", "./t.csv", "link.csv"])
def test_a_table_that_is_named_twice_is_refused(tmp_path: Path, again: str) -> None:
    draw_product(1, 1).save(tmp_path / "a.png")
    write_csv(tmp_path / "t.csv", ["file_name", "label"], [["a.png", "x"]])
    (tmp_path / "link.csv").symlink_to(tmp_path / "t.csv")
    tables = tuple(TableConfig(f"{tmp_path}/{name}") for name in ("t.csv", again))
    with pytest.raises(UserError, match=r"dataset\.tables names .* twice"):
        factory.training_images(DatasetConfig(Product10KConfig(use=False), tables=tables))
