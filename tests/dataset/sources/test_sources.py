"""Each public data set in its true layout: rows, split rule, labels, boxes and protocol."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dataset.check_table import check
from dataset.prepare_dataset import prepare
from dataset.sources import MODULES, data_set, download
from tests.commands import refused
from tests.dataset import layouts
from visual_search.common.errors import UserError
from visual_search.data.datasets import read_training_table


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "download"
    folder.mkdir()
    return folder


def table_of(name: str, source: Path, **options: Any) -> pd.DataFrame:
    out = source.parent / "out"
    prepare(name, out, [source], **options)
    return table_in(out)


def table_in(out: Path) -> pd.DataFrame:
    table = pd.read_csv(out / "dataset_info.csv", dtype=str, keep_default_na=False)
    for file in table["file_name"]:
        assert (out / file).is_file()
    assert set(table["width"]) == set(table["height"]) == {str(layouts.SIDE)}
    return table


def counts(table: pd.DataFrame, *columns: str) -> dict[tuple[str, ...], int]:
    return dict(Counter(table[list(columns)].itertuples(index=False, name=None)))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def offer(name: str, built: Path, folder: Path) -> None:
    """Move an unpacked data set into a folder of its archives, and of what is offered bare."""
    for pattern, held in data_set(name).archives.items():
        found = min(built.rglob(held), key=lambda path: len(path.parts), default=None)
        if found:  # not within another archive already
            top = built / found.relative_to(built).parts[0]
            alone = top.is_dir() or pattern.startswith(top.name)
            archive = folder / pattern.replace("*", "0")
            layouts.pack([top] if alone else sorted(built.iterdir()), archive)
    for path in built.iterdir():
        shutil.move(path, folder)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_folder_its_archives_and_a_download_give_the_same_rows(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the source stays as it is; labels carry the data set's name."""
    wanted, out, offered = data_set(name), tmp_path / "out", tmp_path / "offered"
    offered.mkdir()
    getattr(layouts, name)(source)
    before = state(source)
    table = table_of(name, source)
    assert state(source) == before
    assert not list(out.rglob("*.jpg"))  # none is copied
    assert wanted.page.startswith("http")
    assert table["label"].str.startswith(f"{name}/").all()
    assert not table["file_name"].duplicated().any()
    expected = ["file_name", "label", *wanted.columns, "width", "height", "is_test"]
    assert sorted(table.columns) == sorted(expected)
    assert check(out / "dataset_info.csv", files="all").problems == []
    if name != "glr":  # its index and queries only test
        assert read_training_table(out / "dataset_info.csv").class_names

    def same_as(other: pd.DataFrame) -> None:
        names = [found["file_name"].str.rpartition("/")[2].tolist() for found in (table, other)]
        assert names[0] == names[1]
        assert table.drop(columns="file_name").equals(other.drop(columns="file_name"))

    offer(name, source, offered)
    before = state(offered)
    same_as(table_of(name, offered))
    assert state(offered) == before
    record = (out / ".unpacked.json").read_bytes()
    prepare(name, out, [offered])
    assert (out / ".unpacked.json").read_bytes() == record  # nothing is unpacked again
    for file in wanted.downloads:
        assert any(Path(file.name).match(pattern) for pattern in wanted.archives)
        assert len(file.md5) in (0, 32)
        assert len(file.sha256) in (0, 64)
    if wanted.downloads:
        shutil.rmtree(out)
        monkeypatch.setattr(download, "download", lambda file, *_: offered / file.name)
        prepare(name, out)
        same_as(table_in(out))


def without(builder: Callable[[Path], None], *names: str) -> Callable[[Path], None]:
    """A layout without some of its lists: the class folders say what they said."""

    def build(folder: Path) -> None:
        builder(folder)
        for path in map(folder.joinpath, names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return build


def not_listed(folder: Path) -> None:
    layouts.aliproducts(folder)
    layouts.image(folder / "train" / "00001" / "not_listed.jpg", 1, 9)


def hnm_of_a_spreadsheet(folder: Path) -> None:
    """Which drops the zeros in front."""
    layouts.hnm(folder)
    text = (folder / "articles.csv").read_text()
    (folder / "articles.csv").write_text(text.replace("\n01", "\n1").replace(",01", ",1"))


RP2K = ("12大三元", "乌苏啤酒 500ml")
# Of each layout: its labels with the numbers of training and test images, and cells of columns.
LAYOUTS: list[tuple[str, Callable[[Path], None], dict[Any, tuple[int, int]], dict[str, str]]] = [
    ("sop", layouts.sop, dict.fromkeys((1, 2, 3), (2, 0)) | dict.fromkeys((4, 5), (0, 2)), {}),
    *(
        (
            "cars",
            build,
            dict.fromkeys((1, 97, 98), (2, 0)) | dict.fromkeys((99, 196), (0, 2)),
            {"bbox": "5,7,40,50"},
        )
        for build in (layouts.cars, layouts.cars_devkit, layouts.cars_csv)
    ),
    (
        "cub",  # its boxes are no corners
        layouts.cub,
        dict.fromkeys((1, 100), (2, 0)) | dict.fromkeys((101, 200), (0, 2)),
        {"bbox": "6,8,30,40", "title": "Black footed Albatross"},
    ),
    *(
        ("aliproducts", build, dict.fromkeys(("00001", "50029"), (3, 1)), {})
        for build in (not_listed, without(layouts.aliproducts, "train.json", "val.json"))
    ),
    ("rp2k", layouts.rp2k, dict.fromkeys(RP2K, (3, 1)), {}),
    ("products10k", layouts.products10k, dict.fromkeys(range(3), (3, 1)), {}),
    ("food101", layouts.food101, dict.fromkeys(("apple_pie", "waffles"), (2, 1)), {}),
    *(
        ("hnm", build, {"0108775": (3, 0), "0110065": (2, 0)}, {})
        for build in (layouts.hnm, hnm_of_a_spreadsheet)
    ),
    *(
        ("finefood", build, dict.fromkeys((0, 1, 999), (3, 1)), {})
        for build in (layouts.finefood, without(layouts.finefood, "label"))
    ),
    ("shopee", layouts.shopee, dict.fromkeys((249114794, 2937985045), (3, 0)), {}),
    ("inaturalist_2021", layouts.inaturalist_2021, dict.fromkeys((2912, 9985), (3, 1)), {}),
]


@pytest.mark.parametrize(("name", "build", "labels", "cells"), LAYOUTS)
def test_labels_and_the_split(
    name: str,
    build: Callable[[Path], None],
    labels: dict[Any, tuple[int, int]],
    cells: dict[str, str],
    source: Path,
) -> None:
    build(source)
    table = table_of(name, source)
    assert counts(table, "label", "is_test") == {
        (f"{name}/{label}", str(is_test)): number
        for label, numbers in labels.items()
        for is_test, number in enumerate(numbers)
        if number
    }
    for column, cell in cells.items():
        assert set(table[column]) == {cell}


def test_titles_and_paths(source: Path) -> None:
    for name, label, title in (
        ("cars", "cars/1", "Maker Model/1 Sedan 2012"),
        ("shopee", "shopee/249114794", 'Paper Bag Victoria Secret, "249114794"'),
        ("inaturalist_2021", "inaturalist_2021/2912", "Western Honey Bee"),
        ("inaturalist_2021", "inaturalist_2021/9985", "Rosa canina"),
        ("hnm", "hnm/0108775", "Strap top"),
    ):
        folder = source / name
        folder.mkdir(exist_ok=True)
        getattr(layouts, name)(folder)
        table = table_of(name, folder)
        assert set(table["title"][table["label"] == label]) == {title}
    broken = pd.read_csv(source / "out" / "broken_photos.csv")
    assert broken["file_name"].tolist() == ["../hnm/images/011/0110065051.jpg"]
    assert "does not exist" in broken["reason"][0]
    for name, place, path in (
        ("sop", 0, "Stanford_Online_Products/bicycle_final/111085122871_0.JPG"),
        ("products10k", -1, "test/102.jpg"),
    ):
        (source / name).mkdir()
        getattr(layouts, name)(source / name)
        assert table_of(name, source / name)["file_name"].iloc[place] == f"../{name}/{path}"


def test_cars_needs_the_classes_of_the_test_half(source: Path) -> None:
    layouts.cars_devkit(source)
    labelled = source / "cars_test_annos_withlabels.mat"
    labelled.rename(source / "cars_test_annos.mat")
    assert len(table_of("cars", source)) == 10  # the name alone says nothing
    record = {"bbox_x1": 1, "bbox_x2": 2, "bbox_y1": 1, "bbox_y2": 2, "fname": "1.jpg"}
    layouts.save_struct(source / "cars_test_annos.mat", [record])
    refused("cars_test_annos_withlabels", table_of, "cars", source)


def large_images_only(folder: Path) -> None:
    layouts.inshop(folder)
    (folder / "Img" / "img").rename(folder / "Img" / "img_highres")


def exhibits_unpacked_within(folder: Path) -> None:
    """`MET/MET/7/0.jpg` is what some mirrors unpack to."""
    layouts.met(folder)
    (folder / "MET").rename(folder / "inner")
    (folder / "MET").mkdir()
    (folder / "inner").rename(folder / "MET" / "MET")


def all_of_glr(folder: Path) -> None:
    layouts.glr_train(folder, cleaned=False)
    layouts.glr(folder)


ITEMS = {
    "train": ["id_00000001"] * 3 + ["id_00000002"] * 3,
    "query": ["id_00000003", "id_00000004"],
    "gallery": ["id_00000003"] * 2 + ["id_00000004"] * 2,
}
EXHIBITS = {"train": ["7", "7", "449", "449", "80001", "80001"]}
VAL = ["449", "no_match/test_other/cd34"]
TEST = ["7", "no_match/test_noart/gh78", "no_match/test_noart/ij90"]
INDEX = {"gallery": ["7", "7", "9"], "query": ["7", "9", "no_match/c0c0", "no_match/c0d0"]}
# Of each layout and part: the labels of each status, and the boxes.
PROTOCOLS: list[tuple[str, Callable[[Path], None], str, dict[str, list[str]], str]] = [
    ("inshop", layouts.inshop, "", ITEMS, "10,12,30,40"),
    ("inshop", large_images_only, "", ITEMS, ""),
    ("met", layouts.met, "", EXHIBITS | {"query": VAL + TEST}, ""),
    ("met", layouts.met, "val", EXHIBITS | {"query": VAL}, ""),
    ("met", layouts.met, "test", EXHIBITS | {"query": TEST}, ""),
    ("met", without(layouts.met, "test_noart"), "", EXHIBITS | {"query": [*VAL, "7"]}, ""),
    ("met", exhibits_unpacked_within, "", EXHIBITS | {"query": VAL + TEST}, ""),
    ("glr", layouts.glr, "", INDEX, ""),
    ("glr", partial(layouts.glr_train, cleaned=False), "", {"train": ["5", "5", "5", "6"]}, ""),
    ("glr", partial(layouts.glr_train, cleaned=True), "", {"train": ["5", "5", "6"]}, ""),
    ("glr", all_of_glr, "", {"train": ["5", "5", "5", "6"]} | INDEX, ""),
    ("glr", all_of_glr, "train", {"train": ["5", "5", "5", "6"]}, ""),
]


@pytest.mark.parametrize(("name", "build", "part", "labels", "box"), PROTOCOLS)
def test_training_queries_and_gallery_are_kept_apart(
    name: str,
    build: Callable[[Path], None],
    part: str,
    labels: dict[str, list[str]],
    box: str,
    source: Path,
) -> None:
    build(source)
    table = table_of(name, source, part=part)
    assert table.groupby("evaluation_status")["label"].agg(list).to_dict() == {
        status: [f"{name}/{label}" for label in found] for status, found in labels.items()
    }
    assert table["is_test"].eq("0").equals(table["evaluation_status"].eq("train"))
    assert set(table.get("bbox", [""])) == {box}
    if name == "met":
        refused("val and test", table_of, "met", source, part="train")


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


GONE = "gone"
SOP, CUB = "Stanford_Online_Products", "CUB_200_2011"
# A list; what it is replaced by, a share of it that is left, or an edit; words of the sentence.
CASES: list[tuple[str, str, str | float | tuple[str, str], str]] = [
    ("sop", f"{SOP}/Ebay_test.txt", GONE, "Ebay_test.txt was not found"),
    ("sop", f"{SOP}/Ebay_train.txt", ("id path", "id file"), "line 1"),
    ("sop", f"{SOP}/Ebay_train.txt", ("\n2 1 1 ", "\n2 1 "), "line 3 has 3"),
    ("sop", f"{SOP}/bicycle_final", GONE, "bicycle_final/ was not found"),
    ("cars", "cars196/cars_annos.mat", 0.6, "not a readable .mat"),
    ("cars", "cars196/cars_annos.mat", GONE, "cars_train_annos.mat was not"),
    ("cub", f"{CUB}/bounding_boxes.txt", ("30.0", "wide"), "line 1: the box"),
    ("cub", f"{CUB}/image_class_labels.txt", ("2 1\n", ""), "line 2: image 2"),
    ("cub", f"{CUB}/image_class_labels.txt", ("2 1\n", "2 x\n"), "line 2"),
    ("inshop", "Eval/list_eval_partition.txt", ("12", "13"), "announces 13"),
    ("inshop", "Anno/list_bbox_inshop.txt", 0.6, "list_bbox_inshop.txt"),
    ("inshop", "Eval/list_eval_partition.txt", (" query", " probe"), "'probe'"),
    ("inshop", "Anno/list_bbox_inshop.txt", ("040", "x"), "line 3: the box"),
    ("aliproducts", "train.json", 0.6, "train.json is damaged"),
    ("aliproducts", "val.json", ("class_id", "class"), "missing required field `class_id`"),
    ("rp2k", "all/test", GONE, "all/test/ was not found"),
    ("products10k", "train.csv", ("class", "label"), "no column 'class'"),
    ("products10k", "train.csv", ("4.jpg,1", "4.jpg"), "line 6 has 2 cells"),
    ("products10k", "train.csv", ("4.jpg,1", "4.jpg,"), "line 6: class is empty"),
    ("met", "ground_truth/MET_database.json", ('"path"', '"file"'), "required field `path`"),
    ("met", "ground_truth/testset.json", 0.6, "testset.json is damaged"),
    ("hnm", "articles.csv", GONE, "articles.csv was not found"),
    ("finefood", "label/val_finetune.txt", ("a.jpg 1\n", "a.jpg\n"), "line 2 has"),
    ("shopee", "train.csv", "", "not UTF-8"),
    ("food101", "food-101/meta/test.txt", ("apple_pie/300", "apple_pie"), "line 1 has 1 fields"),
    ("inaturalist_2021", "val.json", ('"image_id": 1000', '"image_id": 7'), "1000"),
    ("inaturalist_2021", "train.json", 0.9, "it is cut off"),
]


@pytest.mark.parametrize(("name", "file", "damage", "words"), CASES)
def test_damaged_and_missing_lists_are_one_sentence(
    name: str, file: str, damage: str | float | tuple[str, str], words: str, source: Path
) -> None:
    getattr(layouts, name)(source)
    path = source / file
    if path.is_dir():
        shutil.rmtree(path)
    elif damage == GONE:
        path.unlink()
    elif isinstance(damage, float):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * damage)])
    elif isinstance(damage, str):
        path.write_text(damage, "utf-16")
    else:
        edited(path, *damage)
    with pytest.raises(UserError) as caught:
        table_of(name, source)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (source.parent / "out" / "dataset_info.csv").exists()


def test_a_box_without_area_costs_its_image_only(source: Path) -> None:
    layouts.inshop(source)
    edited(source / "Anno/list_bbox_inshop.txt", "040", "010")
    done = prepare("inshop", source.parent / "out", [source])
    assert sum(done.rows.values()) == 11
    assert "no part of its box (10, 12, 0, 40)" in done.broken[0][1]


def test_each_archive_was_unpacked_into_a_folder_of_its_own(source: Path) -> None:
    layouts.aliproducts(source)
    for label in ("00001", "50029"):
        for part in ("train", "val"):
            (source / f"unpacked{label}" / part).mkdir(parents=True)
            (source / part / label).rename(source / f"unpacked{label}" / part / label)
    for part in ("train", "val"):
        (source / part).rmdir()
    with_lists = table_of("aliproducts", source)
    assert len(with_lists) == 8
    for part in ("train", "val"):
        (source / f"{part}.json").unlink()
    assert set(table_of("aliproducts", source)["file_name"]) == set(with_lists["file_name"])


def test_an_archive_of_an_unknown_name_is_pointed_out(source: Path) -> None:
    (source / "archive.zip").write_bytes(b"PK")
    refused(r"if it is in .*archive\.zip, name that with --source", table_of, "shopee", source)


def test_lists_on_another_place_than_the_images(source: Path, tmp_path: Path) -> None:
    """MET.tar.gz was unpacked onto one disk, the lists onto another."""
    layouts.met(source)
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    (source / "ground_truth").rename(elsewhere / "ground_truth")
    done = prepare("met", tmp_path / "out", [source, elsewhere])
    assert sum(done.rows.values()) == 11
    assert os.path.isfile(tmp_path / "out" / "dataset_info.csv")
