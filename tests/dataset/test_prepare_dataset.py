"""The command: archives as they are offered, nested ones, downloads, and the training on it."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from dataset.prepare_dataset import main, prepare
from dataset.sources import NAMES, data_set, download
from dataset.sources.base import Download
from tests.commands import stopped, told
from tests.conftest import draw_product
from tests.dataset import layouts

OFFERED: dict[str, dict[str, tuple[str, ...]]] = {
    "sop": {"Stanford_Online_Products.zip": ("", "Stanford_Online_Products")},
    "cars": {"": ("cars196", "cars_annos.mat"), "car_ims.tgz": ("cars196", "car_ims")},
    "cub": {"CUB_200_2011.tgz": ("", "CUB_200_2011", "attributes.txt")},
    # Its archive lies within the folder that one downloads, beside the lists.
    "inshop": {"In-shop/Img/img.zip": ("Img", "img"), "In-shop": ("", "Anno", "Eval")},
    # Ten parts, each with images of both folders: here two.
    "aliproducts": {
        "train_val.part0.tar.gz": ("", "train/00001", "val/00001"),
        "train_val.part1.tar.gz": ("", "train/50029", "val/50029"),
        "": ("", "train.json", "val.json", "product_tree.json"),
    },
    "rp2k": {"rp2k_dataset.zip": ("", "all")},
    "products10k": {
        "train.zip": ("", "train"),
        "test.zip": ("", "test"),
        "": ("", "train.csv", "test_kaggletest.csv"),
    },
    "met": {
        **{
            f"{name}.tar.gz": ("", name) for name in ("MET", "test_met", "test_other", "test_noart")
        },
        "ground_truth.tar.gz": ("ground_truth", "*"),
    },
    "hnm": {"h-and-m-personalized-fashion-recommendations.zip": ("", "*")},
    "finefood": {"Train.tar": ("", "Train"), "Val.tar": ("", "Val"), "": ("", "label")},
    "shopee": {"shopee-product-matching.zip": ("", "*")},
    "inaturalist_2021": {
        f"{name}.tar.gz": ("", name) for name in ("train", "val", "train.json", "val.json")
    },
    "food101": {"food-101.tar.gz": ("", "food-101")},
    "glr": {
        "landmark-retrieval-2020.zip": ("", "index", "test"),
        "": ("", "index_image_to_landmark.csv", "retrieval_solution_v2.1.csv"),
    },
}
"""Of each data set, its archives or folders as they are offered: where in the layout what is in
them lies, and its names."""


def offer(built: Path, to: Path, archives: dict[str, tuple[str, ...]]) -> None:
    """Move a data set's files into its archives and folders."""
    for archive, (base, *names) in archives.items():
        target, folder = to / archive, built / base
        found = [path for name in names for path in sorted(folder.glob(name))]
        assert len(found) >= len(names)
        if not target.suffix:
            target.mkdir(exist_ok=True)
            for path in found:
                shutil.move(path, target)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".zip":
            with zipfile.ZipFile(target, "w") as handle:
                for path in (below for top in found for below in [top, *sorted(top.rglob("*"))]):
                    handle.write(path, path.relative_to(folder))
        else:
            mode = "w" if target.suffix == ".tar" else "w:gz"
            with tarfile.open(target, mode) as tar:  # type: ignore[call-overload]
                for path in found:
                    tar.add(path, path.relative_to(folder))
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_archives_as_they_are_offered(name: str, tmp_path: Path) -> None:
    """A folder of archives gives the same rows as the unpacked data set, and stays as it is."""
    built, offered, expected = (tmp_path / part for part in ("built", "offer", "expected"))
    for folder in (built, offered):
        folder.mkdir()
    getattr(layouts, name)(built)
    prepare(name, expected, [built])
    offer(built, offered, OFFERED[name])
    shutil.rmtree(built)
    before = sorted(offered.rglob("*"))
    prepare(name, tmp_path / "out", [offered])
    assert sorted(offered.rglob("*")) == before
    tables = [
        pd.read_csv(folder / "dataset_info.csv", dtype=str, keep_default_na=False)
        for folder in (expected, tmp_path / "out")
    ]
    for table in tables:
        # Up to the folder that it lies in now.
        table["file_name"] = table["file_name"].str.split("/").str[-3:].str.join("/")
    columns = [column for column in tables[0] if column != "file_name"]
    assert tables[0][columns].equals(tables[1][columns])
    for one, other in zip(tables[0]["file_name"], tables[1]["file_name"], strict=True):
        assert Path(one).name == Path(other).name
    for file in pd.read_csv(tmp_path / "out" / "dataset_info.csv")["file_name"]:
        assert (tmp_path / "out" / file).is_file()
    # A second time nothing is unpacked.
    record = (tmp_path / "out" / ".unpacked.json").read_bytes()
    prepare(name, tmp_path / "out", [offered])
    assert (tmp_path / "out" / ".unpacked.json").read_bytes() == record


def test_an_archive_within_an_archive(tmp_path: Path) -> None:
    layouts.inshop(tmp_path)
    offer(tmp_path, tmp_path, {"Img/img.zip": ("Img", "img")})
    offer(tmp_path, tmp_path, {"deepfashion.zip": ("", "Img", "Eval", "Anno")})
    archive = tmp_path / "deepfashion.zip"
    done = prepare("inshop", tmp_path / "out", [archive])
    assert sum(done.rows.values()) == 12
    # It is gone through again only when it has changed.
    lost = next((tmp_path / "out").rglob("01_1_front.jpg"))
    lost.unlink()
    assert len(prepare("inshop", tmp_path / "out", [archive]).broken) == 1
    with zipfile.ZipFile(archive, "a") as handle:
        handle.writestr("more.txt", "more")
    assert sum(prepare("inshop", tmp_path / "out", [archive]).rows.values()) == 11
    assert (tmp_path / "out" / "more.txt").is_file()


def test_broken_images_are_listed_and_left_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    layouts.products10k(source)
    (source / "train" / "3.jpg").write_bytes(b"")
    cut = (source / "train" / "4.jpg").read_bytes()
    (source / "train" / "4.jpg").write_bytes(cut[:-60])
    (source / "test" / "101.jpg").write_text("<html>")
    quick = prepare("products10k", tmp_path / "quick", [source])
    assert (quick.rows["train"], quick.rows["test"], len(quick.broken)) == (8, 2, 2)
    thorough = prepare("products10k", tmp_path / "thorough", [source], verify=True)
    assert (thorough.rows["train"], thorough.rows["test"], len(thorough.broken)) == (7, 2, 3)
    side = pd.read_csv(tmp_path / "thorough" / "broken_photos.csv")
    assert [Path(name).name for name in side["file_name"]] == ["3.jpg", "4.jpg", "101.jpg"]
    # Mended, the list goes.
    for name in ("train/3.jpg", "train/4.jpg", "test/101.jpg"):
        draw_product(1, 1).save(source / name)
    prepare("products10k", tmp_path / "quick", [source])
    assert not (tmp_path / "quick" / "broken_photos.csv").exists()


def test_the_command(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    layouts.inshop(source)
    (source / "Img" / "img" / "WOMEN" / "Dresses" / "id_00000001" / "01_1_front.jpg").unlink()
    said = told(main, "--dataset", "inshop", "--save_path", tmp_path / "out", "--source", source)
    assert "11 images (5 train, 2 query, 4 gallery), 4 labels" in said
    assert "1 images are left out" in said
    assert "check_table.py" in said

    for arguments, words in (
        (["hnm", str(tmp_path / "out")], "from https://www.kaggle.com/competitions/h-and-m"),
        (["hnm", str(tmp_path / "out"), "--source", "nowhere"], "nowhere does not exist"),
        (["hnm", str(source / "out"), "--source", str(source)], "must stay as it is"),
        (["hnm", str(tmp_path / "out"), "--source", str(source)], "articles.csv was not found"),
        (["sop", str(tmp_path / "out"), "--part", "val"], "sop has none"),
    ):
        name, out, *rest = arguments
        assert words in stopped(main, "--dataset", name, "--save_path", out, *rest)


@pytest.mark.parametrize(
    ("name", "archives"),
    [
        ("cub", OFFERED["cub"]),
        ("sop", OFFERED["sop"]),
        ("cars", {"CARS196.zip": ("cars196", "cars_annos.mat", "car_ims")}),
    ],
)
def test_without_a_source_it_is_downloaded(
    name: str,
    archives: dict[str, tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = tmp_path / "built"
    built.mkdir()
    getattr(layouts, name)(built)
    offer(built, tmp_path, archives)

    def fetched(wanted: Download, folder: Path, page: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(tmp_path / wanted.name, folder))

    monkeypatch.setattr(download, "download", fetched)
    done = prepare(name, tmp_path / "out")
    assert sum(done.rows.values()) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_downloads_are_archives_that_the_reader_knows(name: str) -> None:
    for wanted in data_set(name).downloads:
        assert any(Path(wanted.name).match(pattern) for pattern in data_set(name).archives)
        assert len(wanted.md5) in (0, 32)
        assert len(wanted.sha256) in (0, 64)
