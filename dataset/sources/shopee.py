"""Shopee Product Matching: sellers' images and titles; a group is one product."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Files, csv_records
from visual_search.data.dataset_info import InfoRow


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of `train.csv`; the test photos come without labels.

    Its `image_phash` is not taken over: hashes compare only with those of the same program.
    """
    for record in csv_records(files.file("train.csv"), ["image", "label_group"], ["title"]):
        path = files.image(f"train_images/{record['image']}")
        yield InfoRow(path, record["label_group"], record["title"])


DATA_SET = DataSet(
    title="Shopee Product Matching",
    page="https://www.kaggle.com/competitions/shopee-product-matching/data",
    layout="train.csv and train_images/",
    read=read,
    columns=("title",),
    archives={"shopee-product-matching.zip": "train_images"},
)
