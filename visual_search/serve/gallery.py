"""A shop's products from a table: `products.jsonl`, `gallery.csv`, `dataset_info.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from visual_search.common.errors import UserError
from visual_search.common.files import another_kind, open_regular
from visual_search.data import tables
from visual_search.data.datasets import check_some_exist
from visual_search.data.images import ImageItem
from visual_search.data.schema import check_table
from visual_search.serve.records import IndexedImage, ListedProduct, Product, what_is_wrong


def read_products(path: Path) -> list[Product]:
    """The products of a table, in its order, each once; relative paths are from its folder.

    In `products.jsonl` each line is a product: `id` and `images` (paths, or objects of `path` and
    `box`), maybe `title`, `category`, `price`, `in_stock`, `attributes`. In the tables of
    docs/data.md a product is a `product_id` or a `label`; without one each image is a product.

    Raises:
        UserError: with file, line and what to write instead; also where most images are missing.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.suffix in (".jsonl", ".ndjson"):
        products = _read_lines(path)
    elif path.suffix == ".csv":
        products = _read_csv(path)
    else:
        raise UserError(f"{path} is no table: name a .csv (docs/data.md) or a products.jsonl")
    files = [Path(image.path) for product in products for image in product.images]
    missing = check_some_exist(files, path, path.parent)
    tables.tell(f"{path}: {len(products)} products, {len(files)} images{missing}")
    return products


def _read_lines(path: Path) -> list[Product]:
    lines: dict[str, int] = {}
    products = []
    with open_regular(path) as handle:
        data = handle.read().removeprefix(b"\xef\xbb\xbf")
    if kind := another_kind(data):
        raise UserError(f"{path} {kind}")
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            listed = ListedProduct.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"{path} line {number}: {what_is_wrong(error)}") from error
        if listed.id in lines:
            raise UserError(
                f"{path} line {number}: product {listed.id!r} stands in line "
                f"{lines[listed.id]} already: list its images in one line"
            )
        lines[listed.id] = number
        items = [ImageItem(path.parent / image.path, image.box) for image in listed.images]
        products.append(_product(listed.id, items, listed.model_dump(exclude={"id", "images"})))
    if not products:
        raise UserError(f"{path} lists no product")
    tables.tell_twins(pd.Series(list(lines), list(lines.values())), path, "products")
    return products


def _read_csv(path: Path) -> list[Product]:
    if "seller_img_id" in tables.read_table(path, []).columns:
        table = tables.read_gallery(path)
        check_table(table[["img_path"]], path)
        items = tables.image_items(table, path.parent)
        column = "product_id" if "product_id" in table.columns else "seller_img_id"
        owners = tables.ids_of(table, column, path)
    else:
        table = tables.read_common_table(path)
        owners = table["label"]
        files = [path.parent / name for name in tables.image_names(table)]
        items = list(map(ImageItem, files, tables.boxes_in(table)))
    titles = table["title"].str.strip() if "title" in table.columns else [""] * len(table)
    title_of = {owner: title for owner, title in zip(owners, titles, strict=True) if title}
    of_product: dict[str, list[ImageItem]] = {}
    for owner, item in zip(owners, items, strict=True):
        of_product.setdefault(owner, []).append(item)
    tables.tell_twins(owners, path, "products")
    return [
        _product(owner, listed, {"title": title_of.get(owner)})
        for owner, listed in of_product.items()
    ]


def _product(owner: str, items: list[ImageItem], facts: dict[str, Any]) -> Product:
    """Each image once: a row that stands there twice is one image."""
    images = [IndexedImage.of(item) for item in dict.fromkeys(items)]
    return Product.model_construct(id=owner, images=images, **facts)
