"""AliProducts2020: 50,000 classes with noisy labels (Cheng et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from dataset.sources.base import DataSet, Files, read_json
from visual_search.data.dataset_info import InfoRow


class _Image(msgspec.Struct, gc=False):
    class_id: int | str
    image_id: str


class _Table(msgspec.Struct):
    images: list[_Image]


def read(files: Files) -> Iterator[InfoRow]:
    """The images of `train` and `val`, by their json where there is one, else by class folder."""
    for part, is_test in (("train", False), ("val", True)):
        images = _listed(files, part) if files.has(f"{part}.json") else files.class_images(part)
        for label, path in images:
            yield InfoRow(path, label, is_test=is_test)


def _listed(files: Files, part: str) -> Iterator[tuple[str, str]]:
    for image in read_json(files.file(f"{part}.json"), _Table).images:
        label = str(image.class_id)
        yield label, files.image(f"{part}/{label}/{image.image_id}")


DATA_SET = DataSet(
    title="AliProducts2020",
    page="https://tianchi.aliyun.com/competition/entrance/231780/introduction",
    layout="train/<class>/ and val/<class>/ (from train_val.part0.tar.gz to part9), and, if you "
    "have them, train.json and val.json",
    read=read,
    archives={"train_val.part*.tar.gz": "train"},
)
