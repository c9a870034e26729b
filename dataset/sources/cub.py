"""Caltech-UCSD Birds-200-2011; the retrieval split trains on its first hundred classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dataset.sources.base import DataSet, Download, Files, pixels, split_lines, whole_number
from visual_search.common.errors import UserError
from visual_search.data.dataset_info import InfoRow
from visual_search.data.images import Box

LAST_TRAINING_CLASS = 100


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of `images.txt`, with class and box by the image's number."""
    images = files.file("images.txt")
    labels = _classes(files.file("image_class_labels.txt"))
    boxes = _boxes(files.file("bounding_boxes.txt"))
    for place, (number, path) in split_lines(images, 2):
        if number not in labels or number not in boxes:
            name = "image_class_labels.txt" if number not in labels else "bounding_boxes.txt"
            raise UserError(f"{place}: image {number} is not in {name}")
        label = labels[number]
        yield InfoRow(
            files.image(f"images/{path}"),
            str(label),
            path.partition("/")[0].partition(".")[2].replace("_", " "),
            boxes[number],
            is_test=label > LAST_TRAINING_CLASS,
        )


def _classes(path: Path) -> dict[str, int]:
    return {
        number: whole_number(label, place, "the class")
        for place, (number, label) in split_lines(path, 2)
    }


def _boxes(path: Path) -> dict[str, Box]:
    """The file holds x, y, width and height (with a decimal point), not two corners."""
    boxes: dict[str, Box] = {}
    for place, (number, *box) in split_lines(path, 5):
        x, y, w, h = pixels(box, place)
        boxes[number] = x, y, w, h
    return boxes


DATA_SET = DataSet(
    title="CUB-200-2011",
    page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    layout="CUB_200_2011/ with images.txt, image_class_labels.txt, bounding_boxes.txt and images/",
    read=read,
    columns=("title", "bbox"),
    archives={"CUB_200_2011.tgz": "images.txt"},
    downloads=(
        Download(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            md5="97eceeb196236b17998738112f37df78",
        ),
    ),
)
