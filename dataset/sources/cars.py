"""Stanford Cars (Krause et al. 2013); the retrieval split trains on its first 98 classes.

It goes round in three shapes: `cars_annos.mat` with `car_ims/`; the devkits of its training and
test half, which number their images each from 1; and csv files with class folders.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.sources.base import (
    DataSet,
    Download,
    Files,
    box_of_corners,
    split_lines,
    whole_number,
)
from visual_search.common.errors import UserError
from visual_search.common.files import regular
from visual_search.data.dataset_info import InfoRow

if TYPE_CHECKING:
    import numpy as np

LAST_TRAINING_CLASS = 98
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of whichever shape there is. Which half an image is from says nothing here."""
    if files.has("cars_annos.mat"):
        yield from _matlab_rows(files, files.file("cars_annos.mat"), "relative_im_path", "")
    elif files.has("anno_train.csv"):
        yield from _csv_rows(files)
    else:
        training = files.file("cars_train_annos.mat")
        yield from _matlab_rows(files, training, "fname", "cars_train/")
        test = files.file("cars_test_annos_withlabels.mat", "cars_test_annos.mat")
        yield from _matlab_rows(files, test, "fname", "cars_test/")


def _matlab_rows(files: Files, path: Path, name_field: str, prefix: str) -> Iterator[InfoRow]:
    contents = _load(path)
    names = _class_names(files, contents)
    if "annotations" not in contents:
        raise UserError(f"{path} has no variable 'annotations': it is not of this data set")
    annotations = contents["annotations"].reshape(-1)
    fields = annotations.dtype.names or ()
    missing = [name for name in (*CORNERS, "class", name_field) if name not in fields]
    if missing:
        more = "; the one with classes is cars_test_annos_withlabels.mat"
        raise UserError(
            f"{path} has no field {', '.join(missing)} in its annotations"
            + (more if missing == ["class"] else "")
        )
    for number, annotation in enumerate(annotations, 1):
        place = f"{path} annotation {number}"
        label = whole_number(str(annotation["class"]), place, "the class")
        image = files.image(prefix + str(annotation[name_field]))
        box = box_of_corners([str(annotation[corner]) for corner in CORNERS], place)
        tests = label > LAST_TRAINING_CLASS
        yield InfoRow(image, str(label), names.get(label, ""), box, is_test=tests)


def _class_names(files: Files, contents: dict[str, np.ndarray]) -> dict[int, str]:
    """Names by class id, from the file itself or from the devkit; none where neither has them."""
    if "class_names" not in contents and files.has("cars_meta.mat"):
        contents = _load(files.file("cars_meta.mat"))
    names = contents.get("class_names")
    return {} if names is None else dict(enumerate(map(str, names.flatten()), 1))


def _load(path: Path) -> dict[str, np.ndarray]:
    """The variables of a MATLAB 5 file; its structs become structured arrays."""
    import numpy as np
    from scipy.io import loadmat

    try:
        contents = loadmat(path, squeeze_me=True)
    except Exception as error:  # scipy raises anything from TypeError to zlib.error
        raise UserError(f"{path} is not a readable .mat file: {error}") from error
    return {name: np.atleast_1d(value) for name, value in contents.items() if name[0] != "_"}


def _csv_rows(files: Files) -> Iterator[InfoRow]:
    """`fname,x1,y1,x2,y2,class` without a header; images lie in folders named by class."""
    with open(files.file("names.csv"), newline="", encoding="utf-8-sig", opener=regular) as handle:
        names = {number: row[0] for number, row in enumerate(csv.reader(handle), 1) if row}
    for part in ("train", "test"):
        for place, fields in split_lines(files.file(f"anno_{part}.csv"), 6, separator=","):
            name, *corners, label_text = fields
            label = whole_number(label_text, place, "the class")
            if label not in names:
                raise UserError(f"{place}: class {label} is not in names.csv")
            # A class name with a slash became a folder name with a hyphen.
            path = files.image(f"{part}/{names[label].replace('/', '-')}/{name}")
            box, tests = box_of_corners(corners, place), label > LAST_TRAINING_CLASS
            yield InfoRow(path, str(label), names[label], box, is_test=tests)


DATA_SETS = {
    "cars": DataSet(
        title="Stanford Cars",
        page="https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset",
        layout="cars_annos.mat and car_ims/; or devkit/ with cars_train_annos.mat, "
        "cars_test_annos_withlabels.mat, cars_train/ and cars_test/; or anno_train.csv, "
        "anno_test.csv, names.csv, train/ and test/",
        read=read,
        columns=("title", "bbox"),
        archives={
            "CARS196.zip": "cars_annos.mat",
            "car_ims.tgz": "car_ims",
            "cars_train.tgz": "cars_train",
            "cars_test.tgz": "cars_test",
            "car_devkit.tgz": "cars_train_annos.mat",
        },
        downloads=(Download("http://ftp.cs.stanford.edu/cs/cvgl/CARS196.zip"),),
    )
}
