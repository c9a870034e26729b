"""The embedded data set: its split, the committed files, and a small rebuild of two products."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from dataset.check_table import check
from dataset.demo import build_demo
from dataset.demo.builder import tables
from dataset.demo.builder.catalogue import CURATION, LICENCES, read_catalogue, split_products
from tests.commands import refused
from tests.conftest import csv_rows
from visual_search.data.leak_record import Side, warning

DEMO = Path(build_demo.__file__).parent
DEVELOPMENT = DEMO / "development_test_data"
PRODUCT10K = DEMO / "Product10K"


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


def test_missing_source_names_the_package(tmp_path: Path) -> None:
    refused("apt-get install sweethome3d-furniture", read_catalogue, tmp_path)


def test_curation_names_each_model_once_and_gives_reasons() -> None:
    entries = csv_rows(CURATION)
    assert max(Counter(row["model"] for row in entries).values()) == 1
    for row in entries:
        assert row["decision"] in ("keep", "drop")
        assert row["model"].split("/")[0] in LICENCES
        assert row["reason"]
        assert bool(row["group"]) == (row["decision"] == "keep")


def test_committed_files_match_their_checksums_and_no_photo_is_stored_twice() -> None:
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
    photos = [digest for name, digest in sums.items() if name.endswith(".jpg")]
    assert len(set(photos)) == len(photos)


def test_development_tables_are_consistent() -> None:
    gallery, queries = csv_rows(DEVELOPMENT / "gallery.csv"), csv_rows(DEVELOPMENT / "queries.csv")
    assert [int(row["seller_img_id"]) for row in gallery] == list(range(len(gallery)))
    assert [int(row["user_img_id"]) for row in queries] == list(range(len(queries)))
    assert {row["product_id"] for row in queries} == {row["product_id"] for row in gallery}
    for folder, table in (("gallery", gallery), ("queries", queries)):
        on_disk = {f"{folder}/{path.name}" for path in (DEVELOPMENT / folder).iterdir()}
        assert {row["img_path"] for row in table} == on_disk
        assert len(table) == len(on_disk)
        assert check(DEVELOPMENT / f"{folder}.csv", files="all").problems == []


def test_product10k_tables_are_consistent() -> None:
    train, test = csv_rows(PRODUCT10K / "train.csv"), csv_rows(PRODUCT10K / "test_kaggletest.csv")
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
    products = csv_rows(DEMO / "products.csv")
    assert [int(row["product_id"]) for row in products] == list(range(len(products)))
    development = {row["product_id"] for row in products if row["split"] == "development"}
    training = {row["class"] for row in products if row["split"] == "train"}
    assert {row["product_id"] for row in csv_rows(DEVELOPMENT / "gallery.csv")} == development
    assert {row["class"] for row in csv_rows(PRODUCT10K / "train.csv")} == training
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
