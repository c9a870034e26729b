"""Food-101: dishes, split by photo (Bossard et al. 2014)."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Download, Files
from visual_search.common.errors import UserError
from visual_search.data.dataset_info import InfoRow


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of both lists, each line `class/photo` without the suffix."""
    for part, is_test in (("train", False), ("test", True)):
        table = files.file(f"{part}.txt", f"meta/{part}.txt")
        for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
            label, slash, photo = line.strip().partition("/")
            if not (label and slash and photo):
                raise UserError(f"{table} line {number}: {line!r} is not `class/photo`")
            path = files.photo(f"images/{label}/{photo}.jpg")
            yield InfoRow(path, f"food101/{label}", is_test=is_test)


DATA_SET = DataSet(
    name="food101",
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
