"""DeepFashion In-Shop: queries are scored against the gallery, never pooled (Liu et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dataset.sources.base import DataSet, Files, box_of_corners, split_lines
from visual_search.common.errors import UserError
from visual_search.data.dataset_info import InfoRow
from visual_search.data.images import Box

PARTITION = "image_name item_id evaluation_status"
BOXES = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
STATUSES = ("train", "query", "gallery")


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of the partition, with their boxes.

    The boxes belong to the images of img.zip; where there are only the large ones of
    img_highres.zip, they are left out.
    """
    partition = files.file("list_eval_partition.txt")
    large = files.has("img_highres") and not files.has("img")
    boxes = {} if large else _boxes(files.file("list_bbox_inshop.txt"))
    for place, (name, item, status) in split_lines(partition, 3, header=PARTITION, counted=True):
        if status not in STATUSES:
            raise UserError(f"{place}: {status!r} is none of {', '.join(STATUSES)}")
        if not large and name not in boxes:
            raise UserError(f"{place}: {name} is not in list_bbox_inshop.txt")
        path = name.replace("img/", "img_highres/", 1) if large else name
        yield InfoRow(
            files.image(path),
            item,
            bbox=boxes.get(name),
            evaluation_status=status,
            is_test=status != "train",
        )


def _boxes(path: Path) -> dict[str, Box]:
    return {
        name: box_of_corners(corners, place)
        for place, (name, _, _, *corners) in split_lines(path, 7, header=BOXES, counted=True)
    }


DATA_SET = DataSet(
    title="DeepFashion In-Shop Clothes Retrieval",
    page="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
    layout="Eval/list_eval_partition.txt, Anno/list_bbox_inshop.txt and Img/img/ (from img.zip)",
    read=read,
    columns=("bbox", "evaluation_status"),
    archives={"img.zip": "img"},
)
