"""iNaturalist 2021: 2.7 million images of 10,000 species, with annotations in COCO's form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from dataset.sources.base import DataSet, Download, Files, read_json
from visual_search.common.errors import UserError
from visual_search.data.dataset_info import InfoRow

BUCKET = "https://ml-inat-competition-datasets.s3.amazonaws.com/2021"


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str = ""
    common_name: str | None = None


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int


class _Table(msgspec.Struct):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


def read(files: Files) -> Iterator[InfoRow]:
    """The images of the training list (of the small one where there is no other) and of `val`."""
    for table, is_test in (
        (files.file("train.json", "train_mini.json"), False),
        (files.file("val.json"), True),
    ):
        yield from _rows(files, table, is_test)


def _rows(files: Files, table: Path, is_test: bool) -> Iterator[InfoRow]:
    content = read_json(table, _Table)
    titles = {category.id: category.common_name or category.name for category in content.categories}
    category_of = {item.image_id: item.category_id for item in content.annotations}
    for image in content.images:
        category = category_of.get(image.id)
        if category is None:
            raise UserError(f"{table}: image {image.id} has no annotation")
        path = files.image(image.file_name)
        yield InfoRow(path, str(category), titles.get(category, ""), is_test=is_test)


DATA_SET = DataSet(
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
