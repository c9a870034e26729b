"""Stanford Online Products: eBay listings, split by class (Song et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Download, Files, split_lines
from visual_search.data.dataset_info import InfoRow

HEADER = "image_id class_id super_class_id path"


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of both lists."""
    for name, is_test in (("Ebay_train.txt", False), ("Ebay_test.txt", True)):
        for _, (_, label, _, path) in split_lines(files.file(name), 4, header=HEADER):
            yield InfoRow(files.image(path), label, is_test=is_test)


DATA_SET = DataSet(
    title="Stanford Online Products",
    page="https://cvgl.stanford.edu/projects/lifted_struct/",
    layout="Stanford_Online_Products/ with Ebay_train.txt, Ebay_test.txt and the image folders "
    "(bicycle_final/ …)",
    read=read,
    archives={"Stanford_Online_Products.zip": "Ebay_train.txt"},
    downloads=(Download("http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip"),),
)
