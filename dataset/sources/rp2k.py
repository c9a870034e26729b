"""RP2K: retail products on shelves (Peng et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Download, Files
from visual_search.data.dataset_info import InfoRow


def read(files: Files) -> Iterator[InfoRow]:
    """The class folders of `all/train` and `all/test`."""
    for part, is_test in (("all/train", False), ("all/test", True)):
        for label, path in files.class_images(part):
            yield InfoRow(path, label, is_test=is_test)


DATA_SET = DataSet(
    title="RP2K",
    page="https://www.pinlandata.com/rp2k_dataset/",
    layout="all/train/<class>/ and all/test/<class>/",
    read=read,
    archives={"rp2k_dataset.zip": "all"},
    downloads=(
        Download(
            "https://blob-nips2020-rp2k-dataset.obs.cn-east-3.myhuaweicloud.com/rp2k_dataset.zip"
        ),
    ),
)
