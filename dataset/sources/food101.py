"""Food-101: dishes, split by image (Bossard et al. 2014)."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Download, Files, split_lines
from visual_search.data.dataset_info import InfoRow


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of both lists, each line `class/photo` without the suffix."""
    for part, is_test in (("train", False), ("test", True)):
        table = files.file(f"{part}.txt", f"meta/{part}.txt")
        for _, (label, image) in split_lines(table, 2, separator="/"):
            path = files.image(f"images/{label}/{image}.jpg")
            yield InfoRow(path, label, is_test=is_test)


DATA_SET = DataSet(
    title="Food-101",
    page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    layout="images/<class>/, meta/train.txt and meta/test.txt",
    read=read,
    archives={"food-101.tar.gz": "meta"},
    downloads=(
        Download(
            "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            md5="85eeb15f3717b99a5da872d97d918f87",
        ),
    ),
)
