"""Data sets whose images are listed in text files, a line each, or by class folders alone."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import (
    DataSet,
    Download,
    Files,
    box_of_corners,
    pixels,
    split_lines,
    whole_number,
)
from visual_search.common.errors import UserError
from visual_search.data.dataset_info import InfoRow
from visual_search.data.images import Box


def read_sop(files: Files) -> Iterator[InfoRow]:
    """Stanford Online Products (Song et al. 2016), eBay listings: the rows of both lists."""
    header = "image_id class_id super_class_id path"
    for name, is_test in (("Ebay_train.txt", False), ("Ebay_test.txt", True)):
        for _, (_, label, _, path) in split_lines(files.file(name), 4, header=header):
            yield InfoRow(files.image(path), label, is_test=is_test)


def read_food101(files: Files) -> Iterator[InfoRow]:
    """Dishes (Bossard et al. 2014): the rows of both lists, `class/photo` without the suffix."""
    for part, is_test in (("train", False), ("test", True)):
        table = files.file(f"{part}.txt", f"meta/{part}.txt")
        for _, (label, image) in split_lines(table, 2, separator="/"):
            path = files.image(f"images/{label}/{image}.jpg")
            yield InfoRow(path, label, is_test=is_test)


def read_finefood(files: Files) -> Iterator[InfoRow]:
    """A thousand dishes (ICCV 2021 workshop), listed as `0/photo.jpg 0` or in class folders."""
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


def read_rp2k(files: Files) -> Iterator[InfoRow]:
    """Retail products on shelves (Peng et al. 2020): class folders."""
    for part, is_test in (("all/train", False), ("all/test", True)):
        for label, path in files.class_images(part):
            yield InfoRow(path, label, is_test=is_test)


def read_cub(files: Files) -> Iterator[InfoRow]:
    """Caltech's birds: `images.txt`, with class and box by the image's number.

    The retrieval split trains on the first hundred classes. A box is x, y, width and height (with
    a decimal point), not two corners.
    """
    images = files.file("images.txt")
    labels = {
        number: whole_number(label, place, "the class")
        for place, (number, label) in split_lines(files.file("image_class_labels.txt"), 2)
    }
    boxes: dict[str, Box] = {}
    for place, (number, *box) in split_lines(files.file("bounding_boxes.txt"), 5):
        x, y, w, h = pixels(box, place)
        boxes[number] = x, y, w, h
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
            is_test=label > 100,
        )


PARTITION = "image_name item_id evaluation_status"
BOXES = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
STATUSES = ("train", "query", "gallery")


def read_inshop(files: Files) -> Iterator[InfoRow]:
    """DeepFashion (Liu et al. 2016): queries are scored against the gallery, never pooled.

    The boxes belong to the images of img.zip; where there are only the large ones of
    img_highres.zip, they are left out.
    """
    partition = files.file("list_eval_partition.txt")
    large = files.has("img_highres") and not files.has("img")
    boxes: dict[str, Box] = {}
    if not large:
        table = files.file("list_bbox_inshop.txt")
        for place, (name, _, _, *corners) in split_lines(table, 7, header=BOXES, counted=True):
            boxes[name] = box_of_corners(corners, place)
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


DATA_SETS = {
    "sop": DataSet(
        title="Stanford Online Products",
        page="https://cvgl.stanford.edu/projects/lifted_struct/",
        layout="Stanford_Online_Products/ with Ebay_train.txt, Ebay_test.txt and the image folders "
        "(bicycle_final/ …)",
        read=read_sop,
        archives={"Stanford_Online_Products.zip": "Ebay_train.txt"},
        downloads=(Download("http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip"),),
    ),
    "food101": DataSet(
        title="Food-101",
        page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        layout="images/<class>/, meta/train.txt and meta/test.txt",
        read=read_food101,
        archives={"food-101.tar.gz": "meta"},
        downloads=(
            Download(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                md5="85eeb15f3717b99a5da872d97d918f87",
            ),
        ),
    ),
    "finefood": DataSet(
        title="LargeFineFoodAI",
        page="https://www.kaggle.com/competitions/largefinefoodai-iccv-recognition/data",
        layout="Train/<class>/, Val/<class>/ and, if you have them, train_finetune.txt and "
        "val_finetune.txt",
        read=read_finefood,
        archives={
            "Train.tar": "Train",
            "Val.tar": "Val",
            "largefinefoodai-iccv-recognition.zip": "Train",
        },
    ),
    "rp2k": DataSet(
        title="RP2K",
        page="https://www.pinlandata.com/rp2k_dataset/",
        layout="all/train/<class>/ and all/test/<class>/",
        read=read_rp2k,
        archives={"rp2k_dataset.zip": "all"},
        downloads=(
            Download(
                "https://blob-nips2020-rp2k-dataset.obs.cn-east-3.myhuaweicloud.com/rp2k_dataset.zip"
            ),
        ),
    ),
    "cub": DataSet(
        title="CUB-200-2011",
        page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        layout="CUB_200_2011/ with images.txt, image_class_labels.txt, bounding_boxes.txt and "
        "images/",
        read=read_cub,
        columns=("title", "bbox"),
        archives={"CUB_200_2011.tgz": "images.txt"},
        downloads=(
            Download(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                md5="97eceeb196236b17998738112f37df78",
            ),
        ),
    ),
    "inshop": DataSet(
        title="DeepFashion In-Shop Clothes Retrieval",
        page="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        layout="Eval/list_eval_partition.txt, Anno/list_bbox_inshop.txt and Img/img/ (from "
        "img.zip)",
        read=read_inshop,
        columns=("bbox", "evaluation_status"),
        archives={"img.zip": "img"},
    ),
}
