"""The embedded data set's builder: its pure parts, the committed files, and a small rebuild."""

import csv
import hashlib
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataset.check_table import check
from dataset.demo import build_demo
from dataset.demo.builder import boxes, plan, tables
from dataset.demo.builder.catalogue import (
    CURATION,
    LICENCES,
    Product,
    parse_properties,
    read_catalogue,
    split_products,
)
from dataset.demo.builder.obj import read_model
from dataset.demo.builder.views import View
from tests.commands import refused
from visual_search.data.leaks import Side, warning

DEMO = Path(build_demo.__file__).parent
DEVELOPMENT = DEMO / "development_test_data"
PRODUCT10K = DEMO / "Product10K"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def product(key: str, *, split: str = "train") -> Product:
    return Product(
        key=key,
        archive=Path("none.sh3f"),
        member="none.obj",
        name_en=key,
        name_ru=key,
        category="Office",
        author="A",
        licence="CC0 1.0",
        size_cm=(10.0, 20.0, 30.0),
        elevation_cm=0.0,
        rotation=(1.0, 0, 0, 0, 1, 0, 0, 0, 1),
        mesh_bytes=1,
        look_alike=key,
        split=split,
    )


def test_properties_escapes_comments_and_continuation_lines() -> None:
    text = (
        "# comment\n! another\n\n"
        "name#1=\\u0421\\u0442\\u0443\\u043b\n"
        "  spaced : value with = and :\n"
        "long=first \\\n    second \\\n    third\n"
        "path=C\\:\\\\x\\tend\n"
        "key\\ with\\=signs=yes\n"
        "even=ends\\\\\n"
        "empty=\n"
    )
    assert parse_properties(text) == {
        "name#1": "Стул",
        "spaced": "value with = and :",
        "long": "first second third",
        "path": "C:\\x\tend",
        "key with=signs": "yes",
        "even": "ends\\",
        "empty": "",
    }


def test_box_of_hand_made_mask() -> None:
    mask = np.zeros((9, 12), bool)
    mask[2, 3] = mask[6, 10] = True
    assert boxes.box_of_mask(mask) == (3, 2, 8, 5)
    assert boxes.box_of_mask(np.zeros((4, 4), bool)) is None


@pytest.mark.parametrize("draw", [boxes.loosen, boxes.with_context])
def test_loosened_boxes_stay_inside_and_keep_the_product(draw: object) -> None:
    assert callable(draw)
    rng = np.random.default_rng(0)
    for _ in range(300):
        x, y = int(rng.integers(0, 90)), int(rng.integers(0, 60))
        w, h = int(rng.integers(1, 101 - x)), int(rng.integers(1, 71 - y))
        left, top, wide, high = draw(rng, (x, y, w, h), 100, 70)
        assert left >= 0
        assert top >= 0
        assert left + wide <= 100
        assert top + high <= 70
        assert wide >= 0.97 * w - 1
        assert high >= 0.97 * h - 1


def test_share_in_frame_of_a_cube_seen_half() -> None:
    bounds = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    ahead = View(np.array([0.0, 0, 50]), np.zeros(3), 0.0, 30.0, 100, 100)
    aside = View(np.array([13.4, 0, 50]), np.array([13.4, 0, 0]), 0.0, 30.0, 100, 100)
    assert boxes.share_in_frame(bounds, ahead) == pytest.approx(1.0)
    assert boxes.share_in_frame(bounds, aside) == pytest.approx(0.5, abs=0.05)


def test_split_keeps_look_alikes_together_and_mixes_categories() -> None:
    keys = [f"p{i:03d}" for i in range(120)]
    look_alike = {key: f"g{i // 3}" if i < 60 else key for i, key in enumerate(keys)}
    categories = {key: "ABC"[i // 3 % 3] for i, key in enumerate(keys)}
    sides = split_products(look_alike, categories, 40)
    assert set(sides) == set(keys)
    for group in set(look_alike.values()):
        assert len({sides[key] for key in keys if look_alike[key] == group}) == 1
    taken = Counter(categories[key] for key in keys if sides[key] == "development")
    assert 34 <= taken.total() <= 46
    assert min(taken.values()) >= 10
    assert split_products(look_alike, categories, 40) == sides


def test_split_of_given_keys_does_not_depend_on_their_order() -> None:
    keys = [f"p{i}" for i in range(30)]
    alone = {key: key for key in keys}
    backwards = {key: key for key in reversed(keys)}
    categories = dict.fromkeys(keys, "A")
    assert split_products(alone, categories, 9) == split_products(backwards, categories, 9)


def test_photo_names_are_distinct_and_tell_nothing() -> None:
    photos = [p for i in range(200) for p in plan.photos_of(product(f"Maker/chair{i}"))]
    names = {photo.name for photo in photos}
    assert len(names) == len(photos)
    assert not any("chair" in name for name in names)
    assert {photo.folder for photo in photos} == {plan.TRAIN, plan.TEST}


def test_read_model_resolves_relative_numbers_and_drops_degenerate_faces(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/a.mtl", "newmtl red\nKd 1 0 0\nd 0.5\nmap_Kd missing.png\n")
        archive.writestr(
            "m/a.obj",
            "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nusemtl red\n"
            "f 1 2 3 4\nf 1 2\nf -4 -3 -2\n",
        )
    with zipfile.ZipFile(path) as archive:
        (part,) = read_model(archive, "m/a.obj")
    assert part.material.colour == (1.0, 0.0, 0.0)
    assert part.material.opacity == 0.5
    assert part.material.picture is None
    assert part.sizes.tolist() == [4, 3]
    assert part.points[part.corners[4:]].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_missing_source_names_the_package(tmp_path: Path) -> None:
    refused("apt-get install sweethome3d-furniture", read_catalogue, tmp_path)


def test_help_is_fast() -> None:
    began = time.monotonic()
    command = [sys.executable, str(DEMO / "build_demo.py"), "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--check" in answer.stdout
    assert time.monotonic() - began < 5


def test_curation_names_each_model_once_and_gives_reasons() -> None:
    entries = rows(CURATION)
    assert max(Counter(row["model"] for row in entries).values()) == 1
    for row in entries:
        assert row["decision"] in ("keep", "drop")
        assert row["model"].split("/")[0] in LICENCES
        assert row["reason"]
        assert bool(row["group"]) == (row["decision"] == "keep")


def test_committed_files_match_their_checksums() -> None:
    sums = tables.read_checksums(DEMO / "SHA256SUMS")
    found = {
        path.relative_to(DEMO).as_posix()
        for root in (DEVELOPMENT, PRODUCT10K)
        for path in root.rglob("*.*")
        if not path.name.endswith(".leaks.json")  # that somebody looked at the table
    }
    assert set(sums) == found | {"products.csv"}
    for name, digest in sums.items():
        assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == digest, name


def test_development_tables_are_consistent() -> None:
    gallery, queries = rows(DEVELOPMENT / "gallery.csv"), rows(DEVELOPMENT / "queries.csv")
    assert [int(row["seller_img_id"]) for row in gallery] == list(range(len(gallery)))
    assert [int(row["user_img_id"]) for row in queries] == list(range(len(queries)))
    assert {row["product_id"] for row in queries} == {row["product_id"] for row in gallery}
    for folder, table in (("gallery", gallery), ("queries", queries)):
        on_disk = {f"{folder}/{path.name}" for path in (DEVELOPMENT / folder).iterdir()}
        assert {row["img_path"] for row in table} == on_disk
        assert len(table) == len(on_disk)
        assert check(DEVELOPMENT / f"{folder}.csv", files="all").problems == []


def test_product10k_tables_are_consistent() -> None:
    train, test = rows(PRODUCT10K / "train.csv"), rows(PRODUCT10K / "test_kaggletest.csv")
    classes = {int(row["class"]) for row in train}
    assert classes == set(range(len(classes)))
    assert {int(row["class"]) for row in test} == classes
    for folder, table in (("train", train), ("test", test)):
        on_disk = {path.name for path in (PRODUCT10K / folder).iterdir()}
        assert {row["name"] for row in table} == on_disk
        assert len(table) == len(on_disk)
    groups: dict[str, set[str]] = {}
    for row in train:
        groups.setdefault(row["class"], set()).add(row["group"])
    assert all(len(group) == 1 for group in groups.values())


def test_products_are_disjoint_between_the_splits_and_credited() -> None:
    products = rows(DEMO / "products.csv")
    assert [int(row["product_id"]) for row in products] == list(range(len(products)))
    development = {row["product_id"] for row in products if row["split"] == "development"}
    training = {row["class"] for row in products if row["split"] == "train"}
    assert {row["product_id"] for row in rows(DEVELOPMENT / "gallery.csv")} == development
    assert {row["class"] for row in rows(PRODUCT10K / "train.csv")} == training
    assert all((row["class"] == "") == (row["split"] == "development") for row in products)
    attribution = (DEMO / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for row in products:
        assert row["licence"] in tables.LICENCE_LINKS
        assert row["author"]
        assert f"| {row['author']} | {row['licence']} |" in attribution
        assert f"({row['product_id']})" in attribution


def test_training_and_development_photos_were_compared_as_they_are() -> None:
    sides = [Side(DEVELOPMENT / name) for name in ("gallery.csv", "queries.csv")]
    assert warning([Side(PRODUCT10K / "train.csv")], sides) == ""


def test_no_photo_is_stored_twice() -> None:
    sums = tables.read_checksums(DEMO / "SHA256SUMS")
    photos = [digest for name, digest in sums.items() if name.endswith(".jpg")]
    assert len(set(photos)) == len(photos)


@pytest.mark.slow
@pytest.mark.skipif(
    not build_demo.DEFAULT_SOURCE.is_dir(), reason="the package sweethome3d-furniture is missing"
)
def test_two_products_rebuild_byte_for_byte(tmp_path: Path) -> None:
    pytest.importorskip("vtk")
    pytest.importorskip("scipy")
    sums = []
    for workers in (1, 2):
        output = tmp_path / str(workers)
        build_demo.build(build_demo.DEFAULT_SOURCE, output, 2, workers)
        sums.append((output / "SHA256SUMS").read_bytes())
    assert sums[0] == sums[1]
    assert b".jpg" in sums[0]
