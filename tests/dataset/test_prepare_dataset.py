"""The command, archives within archives, and images that cannot be read."""

import zipfile
from pathlib import Path

import pandas as pd

from dataset.prepare_dataset import main, prepare
from tests.commands import stopped, told
from tests.conftest import draw_product
from tests.dataset import layouts


def test_an_archive_within_an_archive(tmp_path: Path) -> None:
    layouts.inshop(tmp_path)
    layouts.pack([tmp_path / "Img" / "img"], tmp_path / "Img" / "img.zip")
    archive = tmp_path / "deepfashion.zip"
    layouts.pack([tmp_path / name for name in ("Img", "Eval", "Anno")], archive)
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
