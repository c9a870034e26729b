"""The embedded data set: its split, the committed files, and a small rebuild of two products."""

import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.check_table import check
from dataset.demo import build_demo
from dataset.demo.builder import plan, tables
from dataset.demo.builder.catalogue import (
    CURATION,
    LICENCES,
    Product,
    parse_properties,
    read_catalogue,
)
from tests.commands import refused
from tests.conftest import csv_rows
from visual_search.data.leak_record import Side, warning

DEMO = Path(build_demo.__file__).parent
DEVELOPMENT = DEMO / "development_test_data"
PRODUCT10K = DEMO / "Product10K"


def test_split_keeps_look_alikes_together_and_mixes_categories() -> None:
    one = Product("", Path(), "", "", "", "", "", "", (1, 1, 1), 0, (), 0, "")
    products = [
        replace(
            one,
            key=f"p{i:03d}",
            look_alike=f"g{i // 3}" if i < 60 else f"p{i:03d}",
            category="ABC"[i // 3 % 3],
        )
        for i in range(120)
    ]
    dealt = plan.split(products)
    assert dealt == products
    sides = {product.look_alike: product.split for product in dealt}
    assert all(sides[product.look_alike] == product.split for product in dealt)
    taken = Counter(product.category for product in dealt if product.split == "development")
    assert 32 <= taken.total() <= 43
    assert min(taken.values()) >= 10
    assert [p.split for p in plan.split(products)] == [p.split for p in dealt]


def test_java_properties_are_read() -> None:
    """Comments, separators, lines that go on, escapes: as java.util.Properties reads them."""
    text = (
        "# name#1=no \\\r\n  ! name#2=no\r\n\r\nname#1=Caf\\u00e9\\: small\r\nname\\#2 : a = b\n"
        "turn#1 1 0 \\\n   0 1\nempty\nback=a\\\\\nslash=c"
    )
    expected = {"name#1": "Café: small", "name#2": "a = b", "turn#1": "1 0 0 1"}
    assert parse_properties(text) == {**expected, "empty": "", "back": "a\\", "slash": "c"}


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
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=DEMO, check=True)
    lines = (DEMO / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {
        path.relative_to(DEMO).as_posix()
        for root in (DEVELOPMENT, PRODUCT10K)
        for path in root.rglob("*.*")
        if not path.name.endswith(".leaks.json")  # that somebody looked at the table
    }
    assert set(sums) == found | {"products.csv"}
    photos = [digest for name, digest in sums.items() if name.endswith(".jpg")]
    assert len(set(photos)) == len(photos)


def test_the_tables_list_the_photos_and_are_consistent() -> None:
    for table, folder, column, number in (
        (DEVELOPMENT / "gallery.csv", "gallery", "img_path", "seller_img_id"),
        (DEVELOPMENT / "queries.csv", "queries", "img_path", "user_img_id"),
        (PRODUCT10K / "train.csv", "train", "name", ""),
        (PRODUCT10K / "test_kaggletest.csv", "test", "name", ""),
    ):
        rows = csv_rows(table)
        names = sorted(Path(row[column]).name for row in rows)
        assert names == sorted(path.name for path in (table.parent / folder).iterdir())
        if number:
            assert [int(row[number]) for row in rows] == list(range(len(rows)))
            assert check(table, files="all").problems == []
    train, test = csv_rows(PRODUCT10K / "train.csv"), csv_rows(PRODUCT10K / "test_kaggletest.csv")
    classes = {int(row["class"]) for row in train}
    assert classes == set(range(len(classes))) == {int(row["class"]) for row in test}
    assert len({(row["class"], row["group"]) for row in train}) == len(classes)


def test_products_are_disjoint_between_the_splits_and_credited() -> None:
    products = csv_rows(DEMO / "products.csv")
    assert [int(row["product_id"]) for row in products] == list(range(len(products)))
    development = {row["product_id"] for row in products if row["split"] == "development"}
    training = {row["class"] for row in products if row["split"] == "train"}
    for name in ("gallery.csv", "queries.csv"):
        assert {row["product_id"] for row in csv_rows(DEVELOPMENT / name)} == development
    assert {row["class"] for row in csv_rows(PRODUCT10K / "train.csv")} == training
    assert all((row["class"] == "") == (row["split"] == "development") for row in products)
    attribution = (DEMO / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for row in products:
        assert row["licence"] in tables.LICENCE_LINKS
        assert row["author"]
        assert f"| {row['author']} | {row['licence']} |" in attribution
        assert f"({row['product_id']})" in attribution


def test_training_and_development_photos_were_compared_as_they_are() -> None:
    sides = [Side.of(DEVELOPMENT / name) for name in ("gallery.csv", "queries.csv")]
    assert warning([Side.of(PRODUCT10K / "train.csv")], sides) == ""


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
