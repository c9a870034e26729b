"""Products-10K (Bai et al. 2020): its training images, and the labelled test photos."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Files, csv_records
from visual_search.data.dataset_info import InfoRow


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of both lists; their columns are read by name, as their order differs."""
    for table, folder in (("train.csv", "train"), ("test_kaggletest.csv", "test")):
        for record in csv_records(files.file(table), ["name", "class"]):
            path = files.image(f"{folder}/{record['name']}")
            yield InfoRow(path, record["class"], is_test=folder == "test")


DATA_SET = DataSet(
    title="Products-10K",
    page="https://products-10k.github.io/challenge.html",
    layout="train.csv, test_kaggletest.csv, train/ and test/",
    read=read,
    archives={"train.zip": "train", "test.zip": "test", "products-10k.zip": "train.csv"},
)
