"""Data sets whose images are listed in JSON files; these need msgspec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from dataset.sources.base import DataSet, Download, Files
from visual_search.common.errors import UserError
from visual_search.common.files import another_kind, open_regular
from visual_search.data.dataset_info import InfoRow

_NOT_FINITE = re.compile(rb"([:,\[]\s*)(?:NaN|-?Infinity)\b")
Found = TypeVar("Found")


def read_json(path: Path, form: type[Found]) -> Found:
    """UTF-8 JSON file as a `msgspec.Struct`, or a list of one; what that does not name is skipped.

    `NaN` and infinities, which JSON does not know but annotation files have, are taken for null.

    Raises:
        UserError: for a file that is missing, damaged, or of another form; it says where.
    """
    try:
        with open_regular(path) as handle:
            data = handle.read().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if kind := another_kind(data):
        raise UserError(f"{path} {kind}")
    try:
        try:
            return msgspec.json.decode(data, type=form)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return msgspec.json.decode(_NOT_FINITE.sub(rb"\1null", data), type=form)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        cut = "; it is cut off, get it again" if "truncated" in str(error) else ""
        raise UserError(f"{path} is damaged: {error}{cut}") from error


class _Product(msgspec.Struct, gc=False):
    class_id: int | str
    image_id: str


class _Products(msgspec.Struct):
    images: list[_Product]


def read_aliproducts(files: Files) -> Iterator[InfoRow]:
    """50,000 noisy classes (Cheng et al. 2020), listed or, without train.json, in class folders."""
    for part, is_test in (("train", False), ("val", True)):
        if not files.has(f"{part}.json"):
            for label, path in files.class_images(part):
                yield InfoRow(path, label, is_test=is_test)
            continue
        for image in read_json(files.file(f"{part}.json"), _Products).images:
            path = files.image(f"{part}/{image.class_id}/{image.image_id}")
            yield InfoRow(path, str(image.class_id), is_test=is_test)


MIRROR = "http://ptak.felk.cvut.cz/met/dataset"


class _Exhibit(msgspec.Struct, gc=False):
    id: int | str
    path: str


class _Query(msgspec.Struct, gc=False):
    path: str
    MET_id: int | str | None = None


def read_met(files: Files) -> Iterator[InfoRow]:
    """Visitors' photos of exhibits, among images of other things (Ypsilantis et al. 2021).

    The exhibits train, and are what the queries are searched among. A query without an exhibit (a
    distractor) gets a label that no other image has, so that nothing is right for it. Distractors
    whose folder was not downloaded are left out.
    """
    exhibits = files.file("MET_database.json", "mini_MET_database.json")
    for entry in read_json(exhibits, list[_Exhibit]):
        yield InfoRow(files.image(entry.path), str(entry.id), evaluation_status="train")
    for part in (files.part,) if files.part else ("val", "test"):
        for query in read_json(files.file(f"{part}set.json"), list[_Query]):
            if query.MET_id is not None:
                label = str(query.MET_id)
            elif files.has(query.path.partition("/")[0]):
                label = f"no_match/{Path(query.path).with_suffix('')}"
            else:
                continue
            path = files.image(query.path)
            yield InfoRow(path, label, evaluation_status="query", is_test=True)


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


class _Coco(msgspec.Struct):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


def read_inaturalist_2021(files: Files) -> Iterator[InfoRow]:
    """2.7 million images of 10,000 species, with annotations in COCO's form.

    Of the training lists the small one is read where there is no other.
    """
    training = files.file("train.json", "train_mini.json")
    for table, is_test in ((training, False), (files.file("val.json"), True)):
        content = read_json(table, _Coco)
        titles = {item.id: item.common_name or item.name for item in content.categories}
        category_of = {item.image_id: item.category_id for item in content.annotations}
        for image in content.images:
            category = category_of.get(image.id)
            if category is None:
                raise UserError(f"{table}: image {image.id} has no annotation")
            path = files.image(image.file_name)
            yield InfoRow(path, str(category), titles.get(category, ""), is_test=is_test)


DATA_SETS = {
    "aliproducts": DataSet(
        title="AliProducts2020",
        page="https://tianchi.aliyun.com/competition/entrance/231780/introduction",
        layout="train/<class>/ and val/<class>/ (from train_val.part0.tar.gz to part9), and, if "
        "you have them, train.json and val.json",
        read=read_aliproducts,
        archives={"train_val.part*.tar.gz": "train"},
    ),
    "met": DataSet(
        title="The Met dataset",
        page="http://cmp.felk.cvut.cz/met/",
        layout="MET/, test_met/ and, for the distractors, test_other/ and test_noart/; and "
        "MET_database.json, valset.json and testset.json (ground_truth.tar.gz)",
        read=read_met,
        columns=("evaluation_status",),
        parts=("val", "test"),
        archives={
            "MET.tar.gz": "MET",
            "ground_truth.tar.gz": "testset.json",
            "test_met.tar.gz": "test_met",
            "test_other.tar.gz": "test_other",
            "test_noart.tar.gz": "test_noart",
        },
        downloads=(
            Download(f"{MIRROR}/ground_truth.tar.gz"),
            Download(
                f"{MIRROR}/test_met.tar.gz",
                size=34_048_842,
                sha256="2bc9b2e906d5fc69c4c136860b42604ef867b69ada10f1e08aa49175cbe08a35",
            ),
            Download(f"{MIRROR}/test_other.tar.gz"),
            Download(f"{MIRROR}/test_noart.tar.gz"),
            Download(f"{MIRROR}/MET.tar.gz"),
        ),
    ),
    "inaturalist_2021": DataSet(
        title="iNaturalist 2021",
        page="https://github.com/visipedia/inat_comp/tree/master/2021",
        layout="train.json (or train_mini.json), val.json, train/ (or train_mini/) and val/",
        read=read_inaturalist_2021,
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
    ),
}
