"""LargeFineFoodAI (ICCV 2021 workshop): a thousand dishes."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Files, split_lines
from visual_search.data.dataset_info import InfoRow


def read(files: Files) -> Iterator[InfoRow]:
    """The images of the lists, whose lines are `0/photo.jpg 0`; without lists, of class folders."""
    for part, table, is_test in (
        ("Train", "train_finetune.txt", False),
        ("Val", "val_finetune.txt", True),
    ):
        if not files.has(table):
            for label, path in files.class_images(part):
                yield InfoRow(path, label, is_test=is_test)
            continue
        for _, (image, label) in split_lines(files.file(table), 2):
            yield InfoRow(files.image(f"{part}/{image}"), label, is_test=is_test)


DATA_SET = DataSet(
    title="LargeFineFoodAI",
    page="https://www.kaggle.com/competitions/largefinefoodai-iccv-recognition/data",
    layout="Train/<class>/, Val/<class>/ and, if you have them, train_finetune.txt and "
    "val_finetune.txt",
    read=read,
    archives={
        "Train.tar": "Train",
        "Val.tar": "Val",
        "largefinefoodai-iccv-recognition.zip": "Train",
    },
)
