"""Tables of products: what is read, and what a fault says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import refused
from tests.conftest import draw_product, write_csv
from visual_search.common.errors import UserError
from visual_search.data.images import ImageItem
from visual_search.serve.gallery import read_products
from visual_search.serve.records import IndexedImage, Product


def test_each_line_of_a_shop_is_a_product(shop: Path) -> None:
    products = read_products(shop)
    assert len(products) == 12
    first, second = (shop.parent / f"1_{photo}.png" for photo in range(2))
    assert products[1] == Product(
        id="p1",
        title="Shape 1 <b>&",
        category="square",
        price=10.0,
        in_stock=True,
        attributes={"colour": 1},
        images=[
            IndexedImage(str(first), None, f"{first.stat().st_size}-{first.stat().st_mtime_ns}"),
            IndexedImage.of(ImageItem(second, (2, 2, 60, 60))),
        ],
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": ""}, "line 2: id"),
        ({"id": "a"}, "line 2: product 'a' stands in line 1"),
        ({"images": []}, "line 2: images"),
        ({"images": [{"path": "a.png", "box": [0, 0, 0, 5]}]}, "box"),
        ({"images": [{"path": "a.png", "box": [3_000_000_000, 0, 5, 5]}]}, "box"),
        ({"id": "x" * 201}, "line 2: id: String should have at most 200 characters"),
        ({"price": -1}, "line 2: price"),
        ({"price": "cheap"}, "line 2: price"),
        ({"title": "a\0b"}, "line 2: title"),
        ({"attributes": {"a": "\0"}}, "line 2: attributes"),
        ({"cost": 3}, "line 2: cost"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_fault_is_told_with_its_line(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    draw_product(1, 1).save(tmp_path / "a.png")
    table = tmp_path / "products.jsonl"
    lines = [{"id": "a", "images": ["a.png"]}, {"id": "b", "images": ["a.png"], **change}]
    table.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"products\.jsonl") as error:
        read_products(table)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "header", "cells", "expected"),
    [
        ("gallery.csv", ["seller_img_id", "img_path"], [7], {"7": 1, "8": 1, "9": 1}),
        (
            "gallery.csv",
            ["seller_img_id", "img_path", "product_id"],
            [7, "12.0"],
            {"12": 2, "x": 1},
        ),
        ("dataset_info.csv", ["file_name", "label", "title"], ["a", "a"], {"a": 2, "b": 1}),
    ],
    ids=["each image a product", "by product_id", "by label"],
)
def test_tables_of_the_kit_are_galleries(
    dev_folder: Path, name: str, header: list[str], cells: list[object], expected: dict[str, int]
) -> None:
    files = [f"gallery/{product}_0.png" for product in range(3)]
    rows: list[list[object]] = []
    for place, file in enumerate(files):
        if "label" in header:
            label = "b" if place == 2 else "a"
            rows.append([file, label, "" if place == 1 else f"title of {label}"])
        else:
            rows.append([7 + place, file, *(["x" if place == 2 else "12.0"] * (len(header) - 2))])
    products = read_products(write_csv(dev_folder / name, header, rows))
    assert {product.id: len(product.images) for product in products} == expected
    if "title" in header:
        assert products[0].title == "title of a"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"id": "a", "images": ["a.png"]}\r{"id": "\xfc"}', "line 2: the whole: Invalid JSON"),
        (b'[{"id": "a"}]', "line 1: the whole: "),
        (b"\x1f\x8b\x08", "is packed by gzip"),
        (
            b'{"id": "a", "images": ["a.png"]}\n{"id": " a", "images": ["a.png"]}',
            "'a' stands in line 1",
        ),
    ],
)
def test_what_is_no_list_of_products_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    draw_product(1, 1).save(tmp_path / "a.png")
    (tmp_path / "products.jsonl").write_bytes(content)
    refused(words, read_products, tmp_path / "products.jsonl")
