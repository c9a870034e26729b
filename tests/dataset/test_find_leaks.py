import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.find_leaks import main as find_leaks_main
from tests.commands import inside, refused, stopped, told
from tests.conftest import csv_rows, write_csv
from tests.visual_search.evaluation.test_report import Page
from visual_search.config import (
    BackboneConfig,
    DatasetConfig,
    DevSetConfig,
    Product10KConfig,
    TableConfig,
)
from visual_search.data import leaks as leaks_module
from visual_search.data.factory import dev_sides, training_sides
from visual_search.data.images import ImageItem, load_pixels
from visual_search.data.leak_record import (
    Side,
    fingerprint,
    record,
    record_path,
    unchecked,
    warning,
)
from visual_search.data.leaks import find_leaks, list_images
from visual_search.model.checkpoint import save_checkpoint
from visual_search.model.embedder import build_embedder


def scene(seed: int) -> Image.Image:
    """A picture with something of every frequency, so that hashes of two of them are far apart."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return image.resize((160, 160), Image.Resampling.BICUBIC)


@pytest.fixture
def shared(tmp_path: Path) -> tuple[Path, Path]:
    """A training table of Amazon pairs whose images 3 and 5 are copies of queries 0 and 1."""
    for folder in ("train", "queries"):
        (tmp_path / folder).mkdir()
    for i in range(8):
        scene(i).save(tmp_path / "train" / f"{i}.png")
    for query, source in enumerate((3, 5, 20, 21)):
        scene(source).resize((90, 90)).save(tmp_path / "queries" / f"{query}.jpg", quality=85)
    train = write_csv(
        tmp_path / "pairs.csv", ["image_path", "label"], [(f"train/{i}.png", i) for i in range(8)]
    )
    test = write_csv(
        tmp_path / "queries.csv",
        ["user_img_id", "img_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "product_id"],
        [(i, f"queries/{i}.jpg", 0, 0, 9, 9, i) for i in range(4)],
    )
    return train, test


def test_copies_are_found_and_drawn(shared: tuple[Path, Path]) -> None:
    train, test = shared
    said = told(find_leaks_main, "--train", train, "--test", test)
    assert "2 of 4 evaluation images are near-duplicates" in said
    assert "--embeddings RUN_OR_EXPORT asks a model" in said
    rows = csv_rows(train.parent / "leaks.csv")
    pairs = {(Path(row["test_photo"]).name, Path(row["train_photo"]).name) for row in rows}
    assert pairs == {("0.jpg", "3.png"), ("1.jpg", "5.png")}
    assert all(int(row["distance"]) <= 10 and row["cosine"] == "" for row in rows)
    drawn = Page((train.parent / "leaks.html").read_text()).rows
    assert {tuple(Path(title).name for _, title in row) for row in drawn} == pairs
    sides = [Side.of(train)], [Side.of(test)]
    assert not unchecked(*sides)
    notes = json.loads(record_path(train).read_text())
    assert [(note["pairs"], note["evaluation_photos"]) for note in notes] == [(2, 2)]
    # The training table without them: nothing is found, and the old picture goes.
    clean = [(f"train/{i}.png", i) for i in range(8) if i not in (3, 5)]
    write_csv(train, ["image_path", "label"], clean)
    assert unchecked(*sides) == [(Side.of(train), Side.of(test))]
    done = inside(find_leaks_main, "--train", train, "--test", test)
    assert "no leak" in done.stdout
    assert not (train.parent / "leaks.html").exists()
    assert not unchecked(*sides)


def test_more_pairs_than_anybody_looks_at_are_refused(
    shared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks_module, "MOST_PAIRS", 1)
    train, test = (
        list_images(file, None, side) for file, side in zip(shared, (True, False), strict=True)
    )
    words = "more than 1 pairs lie within 10 bits: lower --threshold"
    refused(words, find_leaks, train, test, 10, progress=False)


def test_a_model_compares_the_pairs(shared: tuple[Path, Path]) -> None:
    """By the command, perhaps in half precision; each cosine as it is worked out alone."""
    train, test = shared
    torch.manual_seed(0)
    embedder, architecture = build_embedder(
        BackboneConfig("timm/test_efficientnet", "none", std=(0.25,) * 3), 64
    )
    model = train.parent / "model"
    save_checkpoint(model, architecture, embedder.state_dict(), {}, {"run": "tiny"})
    options = ["--threshold", 40, "--embeddings", model, "--cosine"]
    said = told(find_leaks_main, "--train", train, "--test", test, *options, 0.9)
    rows = csv_rows(train.parent / "leaks.csv")
    assert len(rows) > 20
    embedder.eval()

    def embedded(path: str) -> np.ndarray:
        pixels, _ = load_pixels(ImageItem(Path(path)), 64)
        with torch.inference_mode():
            (vector,) = embedder(torch.from_numpy(np.stack([pixels]))).numpy()
        return vector / np.linalg.norm(vector)

    for row in rows:
        cosine = float(embedded(row["test_photo"]) @ embedded(row["train_photo"]))
        assert float(row["cosine"]) == pytest.approx(cosine, abs=1e-2)
        assert abs(cosine - 0.9) < 1e-2 or row["confirmed"] == str(cosine >= 0.9)
    images = {row["test_photo"] for row in rows if row["confirmed"] == "True"}
    assert ("next: leave the training images" if images else "next: nothing") in said
    assert f"{len(images)} of 4 evaluation images are confirmed near-duplicates" in said
    (note,) = json.loads(record_path(train).read_text())
    assert (note["cosine"], note["evaluation_photos"]) == (0.9, len(images))


def test_the_kinds_of_tables(tmp_path: Path, shared: tuple[Path, Path]) -> None:
    lists = write_csv(tmp_path / "train.csv", ["name", "class"], [("1.png", 0), ("2.png", 0)])
    assert [path.name for path in list_images(lists, None, True).paths] == ["1.png", "2.png"]
    header = ["file_name", "label", "is_test", "hash"]
    both = write_csv(
        tmp_path / "dataset_info.csv",
        header,
        [("no/such.png", "x", 0, f"{7:016x}"), ("no/other.png", "x", 1, f"{9:016x}")],
    )
    sides = [list_images(both, None, trains) for trains in (True, False)]
    assert [side.hashes.tolist() for side in sides] == [[7], [9]]
    leaks = find_leaks(sides[0], sides[1], 4, progress=False)
    assert [(Path(leak.train_photo).name, leak.distance) for leak in leaks] == [("such.png", 3)]
    folds = write_csv(
        tmp_path / "folds.csv",
        ["file_name", "label", "fold", "hash"],
        [("a", "x", 0, f"{1:016x}"), ("b", "x", 1, f"{2:016x}"), ("c", "x", -1, f"{3:016x}")],
    )
    assert list_images(folds, None, True, fold=1).hashes.tolist() == [1, 3]
    assert list_images(folds, None, False, fold=1).hashes.tolist() == [2]
    assert [list_images(file, None, True, fold=1).fold for file in (folds, lists)] == [1, -1]
    wrong = write_csv(tmp_path / "wrong.csv", ["photo"], [("a",)])
    refused("has none of the columns", list_images, wrong, None, True)
    absent = write_csv(tmp_path / "absent.csv", ["image_path", "label"], [("a.png", "x")])
    refused("not one image", list_images, absent, None, True)


def test_a_record_holds_for_the_tables_as_they_were(tmp_path: Path) -> None:
    train, other, gallery, queries = (Side.of(tmp_path / name) for name in "abcd")
    for side in (train, other, gallery, queries):
        side.table.write_text(side.table.name)
    words = warning([train, other], [gallery, queries])
    assert f"--train {train.table} {other.table} --test {gallery.table} {queries.table}" in words
    for test in (gallery, queries):
        record(train, test, {})
        record(other, test, {})
    assert warning([train, other], [gallery, queries]) == ""
    queries.table.write_text("changed")
    assert unchecked([train, other], [gallery, queries]) == [(train, queries), (other, queries)]
    record(train, queries, {})
    assert unchecked([train], [gallery, queries]) == []
    for spoilt in ("{not json", "[1, 2]", "3"):
        record_path(train.table).write_text(spoilt)
        assert len(unchecked([train], [gallery, queries])) == 2
    assert fingerprint(tmp_path / "none") == ""


def test_a_record_knows_fold_and_folder(tmp_path: Path) -> None:
    """The images that trained in fold 0 are judged on in fold 1, of the very same tables."""
    folds, judged = tmp_path / "folds.csv", tmp_path / "judged.csv"
    for path in (folds, judged):
        path.write_text(path.name)
    record(Side.of(folds, fold=0), Side.of(folds, fold=0), {})
    assert warning([Side.of(folds, fold=0)], [Side.of(folds, fold=0)]) == ""
    words = warning([Side.of(folds, fold=1)], [Side.of(folds, fold=1)])
    assert words.endswith(f"find_leaks.py --train {folds} --test {folds} --fold 1")
    for fold in (0, 1):
        record(Side.of(folds, fold=fold), Side.of(judged), {})
    assert unchecked([Side.of(folds, fold=0), Side.of(folds, fold=1)], [Side.of(judged)]) == []
    # Elsewhere other images may have the same names; the table's own folder is the usual one.
    images = tmp_path / "other images"
    assert unchecked([Side.of(folds, tmp_path, 0)], [Side.of(judged, tmp_path)]) == []
    words = warning([Side.of(folds, images, 0), Side.of(folds, fold=2)], [Side.of(judged, images)])
    assert f"--train_root '{images}' --test_root '{images}' --fold 0 --test_fold -1 && " in words
    assert words.endswith(f"--test_root '{images}' --fold 2 --test_fold -1")


def test_the_command_that_a_warning_prints_ends_it(
    tmp_path: Path, shared: tuple[Path, Path]
) -> None:
    """Of one folds.csv, fold 1 is judged on; its paths lie below another folder."""
    images, tables = tmp_path / "train", tmp_path / "tables"
    tables.mkdir()
    rows = [(f"{i}.png", i, i % 3) for i in range(6)]
    scene(3).save(images / "4.png")  # an image of fold 0 stands in fold 1, too
    folds = write_csv(tables / "folds.csv", ["file_name", "label", "fold"], rows)
    side = Side.of(folds, images, 1)
    told(find_leaks_main, *shlex.split(warning([side], [side]).partition("find_leaks.py ")[2]))
    (leak,) = csv_rows(tables / "leaks.csv")
    assert [Path(leak[f"{name}_photo"]).name for name in ("test", "train")] == ["4.png", "3.png"]
    assert warning([side], [side]) == ""
    # Without the fold the table would be compared with itself.
    roots = ["--train_root", images, "--test_root", images]
    said = stopped(find_leaks_main, "--train", folds, "--test", folds, *roots)
    assert "name the fold that is held out with --fold" in said


@pytest.mark.parametrize(
    ("product10k", "folder"),
    [(Product10KConfig(), "."), (Product10KConfig(train_prefix="photos"), "photos")],
)
def test_a_phase_says_which_images_it_looks_at(product10k: Product10KConfig, folder: str) -> None:
    table = TableConfig("tables/folds.csv", root="photos", fold=2)
    dataset = DatasetConfig(
        product10k, (table,), dev_set=DevSetConfig(table="folds.csv", root="elsewhere", fold=3)
    )
    lists, entry = training_sides(dataset)
    assert lists.root == folder
    assert entry == Side.of(Path("tables/folds.csv"), Path("photos"), 2)
    assert dev_sides(dataset.dev_set) == [Side.of(Path("folds.csv"), Path("elsewhere"), 3)]
    assert [side.root for side in dev_sides(DevSetConfig())] == [".", "."]
