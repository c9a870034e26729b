"""A shop's products from a table: `products.jsonl`, `gallery.csv`, `dataset_info.csv`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    ValidationError,
)

from visual_search.common.errors import UserError
from visual_search.common.files import another_kind, open_regular
from visual_search.data.datasets import check_some_exist
from visual_search.data.images import ImageItem
from visual_search.data.schema import check_table
from visual_search.data.tables import (
    boxes_in,
    ids_of,
    image_items,
    image_names,
    read_common_table,
    read_gallery,
    read_table,
    tell,
    tell_twins,
)
from visual_search.data.values import id_of, value_of
from visual_search.serve.records import IndexedImage, Product


def _storable(value: Any) -> Any:
    """PostgreSQL stores neither zero bytes nor halves of characters."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if "\\u0000" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("it has a character that cannot be stored")
    return value


Text = AfterValidator(_storable)
ProductId = Annotated[str, BeforeValidator(id_of), Field(max_length=200), Text]
Category = Annotated[str, AfterValidator(value_of), Field(max_length=200), Text]
Attributes = Annotated[dict[str, JsonValue], Text]
BoxNumbers = tuple[int, int, Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]


class ProductFacts(BaseModel, extra="forbid"):
    """What a shop tells of a product: `products.jsonl`, and the body of `PUT /products/{id}`."""

    title: Annotated[str | None, Field(max_length=500), Text] = None
    category: Category | None = None
    price: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    in_stock: bool | None = None
    attributes: Attributes = Field(default_factory=dict)

    def product(self, product: str, images: Sequence[IndexedImage] = ()) -> Product:
        """The product of an id, with its images."""
        facts = {name: getattr(self, name) for name in ProductFacts.model_fields}
        return Product(product, **facts, images=images)


class _ListedImage(BaseModel, extra="forbid"):
    path: Annotated[str, Field(min_length=1), Text]
    box: BoxNumbers | None = None


class _ListedProduct(ProductFacts):
    id: ProductId
    images: Annotated[list[str | _ListedImage], Field(min_length=1)]


def what_is_wrong(error: ValidationError) -> str:
    """The first fault of some JSON, in a few words: where, what, and what stands there."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{where}: {first['msg']} (it is {str(first['input'])[:60]!r})"


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
    tell(f"{path}: {len(products)} products, {len(files)} images{missing}")
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
            listed = _ListedProduct.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"{path} line {number}: {what_is_wrong(error)}") from error
        if listed.id in lines:
            raise UserError(
                f"{path} line {number}: product {listed.id!r} stands in line "
                f"{lines[listed.id]} already: list its images in one line"
            )
        lines[listed.id] = number
        entries = [
            _ListedImage(path=entry) if isinstance(entry, str) else entry for entry in listed.images
        ]
        items = [ImageItem(path.parent / entry.path, entry.box) for entry in entries]
        products.append(listed.product(listed.id, _images(items)))
    if not products:
        raise UserError(f"{path} lists no product")
    tell_twins(pd.Series(list(lines), list(lines.values())), path, "products")
    return products


def _read_csv(path: Path) -> list[Product]:
    if "seller_img_id" in read_table(path, []).columns:
        table = read_gallery(path)
        check_table(table[["img_path"]], path)
        items = image_items(table, path.parent)
        column = "product_id" if "product_id" in table.columns else "seller_img_id"
        owners = ids_of(table, column, path)
    else:
        table = read_common_table(path)
        owners = table["label"]
        items = [
            ImageItem(path.parent / name, box)
            for name, box in zip(image_names(table), boxes_in(table), strict=True)
        ]
    of_product: dict[str, list[ImageItem]] = {}
    for owner, item in zip(owners, items, strict=True):
        of_product.setdefault(owner, []).append(item)
    titles = {}
    if "title" in table.columns:
        titles = dict(zip(owners, table["title"].str.strip(), strict=True))
    tell_twins(owners, path, "products")
    return [
        Product(owner, titles.get(owner) or None, images=_images(listed))
        for owner, listed in of_product.items()
    ]


def _images(items: Sequence[ImageItem]) -> list[IndexedImage]:
    """Each image once: a row that stands there twice is one image."""
    return [
        IndexedImage(str(item.path.absolute()), item.box, file_state(item.path))
        for item in dict.fromkeys(items)
    ]


def file_state(path: Path) -> str:
    """Size and time of change of a file: what says that it is another than it was."""
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"
