"""iNaturalist 2021: 2.7 million photos of 10,000 species, with annotations in COCO's form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dataset.json_arrays import array_items
from dataset.sources.base import DataSet, Download, Files
from visual_search.dataset_info import InfoRow
from visual_search.errors import UserError

BUCKET = "https://ml-inat-competition-datasets.s3.amazonaws.com/2021"


def read(files: Files) -> Iterator[InfoRow]:
    """The photos of the training list (of the small one where there is no other) and of `val`."""
    for table, is_test in (
        (files.file("train.json", "train_mini.json"), False),
        (files.file("val.json"), True),
    ):
        yield from _rows(files, table, is_test)


def _rows(files: Files, table: Path, is_test: bool) -> Iterator[InfoRow]:
    titles = {
        _number(category, "id", table): category.get("common_name") or category.get("name") or ""
        for category in array_items(table, "categories")
    }
    categories = _Categories(table)
    for image in array_items(table, "images"):
        number, name = _number(image, "id", table), image.get("file_name")
        if not name:
            raise UserError(f"{table}: photo {number} has no file_name")
        category = categories.of(number)
        yield InfoRow(
            files.photo(name),
            f"inaturalist_2021/{category}",
            titles.get(category, ""),
            is_test=is_test,
        )


class _Categories:
    """Which category each photo has, in 16 bytes a photo; a dict would take a hundred more."""

    def __init__(self, table: Path) -> None:
        self.table = table
        pairs = np.fromiter(
            (
                (_number(item, "image_id", table), _number(item, "category_id", table))
                for item in array_items(table, "annotations")
            ),
            dtype=np.dtype((np.int64, 2)),
        )
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self.photos, self.categories = pairs[:, 0], pairs[:, 1]

    def of(self, photo: int) -> int:
        place = int(np.searchsorted(self.photos, photo))
        if place == len(self.photos) or self.photos[place] != photo:
            raise UserError(f"{self.table}: photo {photo} has no annotation")
        return int(self.categories[place])


def _number(item: dict, key: str, table: Path) -> int:
    value = item.get(key)
    if not isinstance(value, int):
        raise UserError(f"{table}: {key} of {str(item)[:80]} is {value!r}, not a whole number")
    return value


DATA_SET = DataSet(
    name="inaturalist_2021",
    title="iNaturalist 2021",
    page="https://github.com/visipedia/inat_comp/tree/master/2021",
    layout="train.json (or train_mini.json), val.json, train/ (or train_mini/) and val/",
    read=read,
    columns=("title",),
    archives={
        "train.tar.gz": "train",
        "train_mini.tar.gz": "train_mini",
        "val.tar.gz": "val",
        "train.json.tar.gz": "train.json",
        "train_mini.json.tar.gz": "train_mini.json",
        "val.json.tar.gz": "val.json",
    },
    downloads=(
        Download(f"{BUCKET}/train.json.tar.gz", md5="38a7bb733f7a09214d44293460ec0021"),
        Download(f"{BUCKET}/val.json.tar.gz", md5="4d761e0f6a86cc63e8f7afc91f6a8f0b"),
        Download(f"{BUCKET}/val.tar.gz", md5="f6f6e0e242e3d4c9569ba56400938afc"),
        Download(f"{BUCKET}/train.tar.gz", md5="e0526d53c7f7b2e3167b2b43bb2690ed"),
    ),
)
