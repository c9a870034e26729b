"""One rule for ids and labels, in every kind of file that has them and wherever one is given.

Tables themselves have more rules: tests/visual_search/data/test_tables.py.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from dataset.dataset_creation_steps.reviews import Fields, product, read_objects, review
from dataset.folder_info import describe_folder
from dataset.image_text.catalogue_pairs import catalogue_pairs
from dataset.image_text.query_lines import QueryLine, read_images, read_lines
from dataset.prepare_dataset import prepare
from tests.commands import refused
from tests.conftest import draw_product, write_csv
from visual_search.common.errors import UserError
from visual_search.data.datasets import read_training_table
from visual_search.data.dev_sets import read_dev_set
from visual_search.data.values import fault_of, id_of, twins, value_of
from visual_search.text.zero_shot import read_zero_shot_set

Cells = Sequence[object]


def draw(*paths: Path) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_product(number, 0, 40).save(path)


def labels_of(table: Path) -> list[str]:
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    rows = rows.assign(place=rows["file_name"].str[-5]).sort_values("place")
    return [label.rpartition("/")[2] for label in rows["label"]]


def table(folder: Path, cells: Cells) -> list[str]:
    names = [f"{number}.png" for number in range(len(cells))]
    draw(*(folder / name for name in names))
    write_csv(folder / "t.csv", ["file_name", "label"], zip(names, cells, strict=True))
    images = read_training_table(folder / "t.csv")
    return [images.class_names[label] for label in images.labels]


def challenge(folder: Path, cells: Cells) -> list[str]:
    draw(folder / "a.png")
    rows = [[number, "a.png", cell] for number, cell in enumerate(cells)]
    write_csv(folder / "gallery.csv", ["seller_img_id", "img_path", "product_id"], rows)
    header = ["user_img_id", "img_path", "product_id", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]
    write_csv(folder / "queries.csv", header, [[*row, 0, 0, 9, 9] for row in rows])
    dev_set = read_dev_set(folder)
    assert dev_set.gallery_products.tolist() == dev_set.query_products.tolist()
    return dev_set.query_products.tolist()


def class_folders(folder: Path, cells: Cells) -> list[str]:
    draw(*(folder / "photos" / str(cell) / f"{place}.png" for place, cell in enumerate(cells)))
    describe_folder(folder / "photos", folder)
    return labels_of(folder / "dataset_info.csv")


def public_json(folder: Path, cells: Cells) -> list[str]:
    source = folder / "in"
    draw(*(source / f"train/{cell}/{place}.png" for place, cell in enumerate(cells)))
    images = [{"class_id": cell, "image_id": f"{n}.png"} for n, cell in enumerate(cells)]
    (source / "train.json").write_text("\ufeff" + json.dumps({"images": images}))
    (source / "val.json").write_text('{"images": []}')
    prepare("aliproducts", folder / "out", [source])
    return labels_of(folder / "out" / "dataset_info.csv")[: len(cells)]


def catalogue(folder: Path, cells: Cells) -> list[str]:
    known = [value_of(str(cell)) for cell in cells]
    rows = [[cell, "", "стул", "chairs"] for cell in dict.fromkeys(known)]
    write_csv(folder / "products.csv", ["product_id", "class", "name_ru", "category"], rows)
    for name in ("Product10K/train.csv", "Product10K/test_kaggletest.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_csv(folder / name, ["name", "class"], [])
    (folder / "development_test_data").mkdir()
    gallery = folder / "development_test_data" / "gallery.csv"
    write_csv(gallery, ["img_path", "product_id"], [["a.png", cell] for cell in cells])
    return catalogue_pairs(folder)["group"].to_pylist()


def json_lines(folder: Path, cells: Cells, **more: object) -> Path:
    file = folder / "lines.json"
    file.write_text("\ufeff" + "\n".join(json.dumps({"image": cell, **more}) for cell in cells))
    return file


def addresses(folder: Path, cells: Cells) -> list[str]:
    lines = json_lines(folder, cells, url="http://a.b/c.jpg")
    return read_images(lines, Counter())["image"].to_pylist()


def queries(folder: Path, cells: Cells) -> list[str]:
    lines = json_lines(folder, cells, queries=["стул"])
    return [image for block in read_lines(lines, Counter(), QueryLine) for image, _ in block]


def amazon(folder: Path, cells: Cells) -> list[str]:
    file, links = folder / "a.json", ["http://a.b/c.jpg"]
    rows = [{"asin": cell, "image": links, "imageURL": links} for cell in cells]
    file.write_text("\n".join(map(json.dumps, rows)))
    tally: Counter[str] = Counter()
    found = [fields for block in read_objects(file, tally, Fields) for fields in block]
    pairs = [(review(fields, tally), product(fields, tally)) for fields in found]
    known = [(one[0], other[0]) for one, other in pairs if one and other]
    if not known:
        raise UserError("must not be empty: counted")
    assert all(one == other for one, other in known)
    return [one for one, _ in known]


def each(read: Callable[[Path, object], str]) -> Callable[[Path, Cells], list[str]]:
    """A reader of one value, asked for each, in folders of their own with an image a.png."""

    def read_all(folder: Path, cells: Cells) -> list[str]:
        folders = [folder / str(place) for place in range(len(cells))]
        draw(*(own / "a.png" for own in folders))
        return [read(own, cell) for own, cell in zip(folders, cells, strict=True)]

    return read_all


def zero_shot_id(folder: Path, cell: object) -> str:
    """An image is found under its id, however that is spelt."""
    name = value_of(str(cell))
    draw(folder / "img" / f"{name}.png")
    (folder / "classes.json").write_text('["a", "b"]')
    (folder / "labels.json").write_text(json.dumps({str(cell): "1.0"}))
    labels = read_zero_shot_set(folder).labels
    assert labels is not None
    assert labels.tolist() == [1]
    return name


def zero_shot_class(folder: Path, cell: object) -> str:
    draw(folder / "img/0.png")
    (folder / "classes.json").write_text("\ufeff" + json.dumps([str(cell)]))
    ((name,),) = read_zero_shot_set(folder).classes
    return name


def shop_line(folder: Path, cell: object) -> str:
    gallery = pytest.importorskip("visual_search.serve.gallery")
    line = json.dumps({"id": cell, "images": ["a.png"], "category": str(cell)})
    (folder / "t.jsonl").write_text("\ufeff" + line)
    (read,) = gallery.read_products(folder / "t.jsonl")
    assert read.id == read.category
    return str(read.id)


def shop_gallery(folder: Path, cell: object) -> str:
    gallery = pytest.importorskip("visual_search.serve.gallery")
    rows = [[1, "a.png", cell], [2, "a.png", value_of(str(cell))]]
    file = write_csv(folder / "t.csv", ["seller_img_id", "img_path", "product_id"], rows)
    (read,) = gallery.read_products(file)
    return str(read.id)


def request(_: Path, cell: object) -> str:
    records = pytest.importorskip("visual_search.serve.records")
    try:
        return str(TypeAdapter(records.ProductId).validate_python(cell))
    except ValidationError as error:
        raise UserError(records.what_is_wrong(error)) from error


# Every kind of place that an id or a label comes from: docs/data.md lists them, too.
SIBLINGS: dict[str, Callable[[Path, Cells], list[str]]] = {
    "training table": table,
    "gallery.csv, queries.csv": challenge,
    "class folders": class_folders,
    "JSON of a public data set": public_json,
    "products.csv": catalogue,
    "images.json": addresses,
    "metadata.json": queries,
    "reviews and products": amazon,
    "labels.json": each(zero_shot_id),
    "classes.json": each(zero_shot_class),
    "products.jsonl": each(shop_line),
    "gallery.csv of a shop": each(shop_gallery),
    "request": each(request),
}
JSON = ("JSON of a public data set", "images.json", "metadata.json", "products.jsonl", "request")


@pytest.mark.parametrize("sibling", SIBLINGS)
@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["12", " 12", "12.0"], ["12"] * 3),
        (["u\u0308ber", "\xfcber ", "\xfcber"], ["\xfcber"] * 3),
        (["012", "x", "12.5", "-3.", "a  b", "none"], ["012", "x", "12.5", "-3", "a  b", "none"]),
    ],
    ids=["numbers", "letters", "what differs"],
)
def test_ids_and_labels_are_read_by_value(
    tmp_path: Path, sibling: str, cells: list[str], values: list[str]
) -> None:
    assert SIBLINGS[sibling](tmp_path, cells) == values


@pytest.mark.parametrize("sibling", [*JSON, "reviews and products"])
def test_numbers_of_json_are_ids(tmp_path: Path, sibling: str) -> None:
    if sibling == JSON[0]:
        assert SIBLINGS[sibling](tmp_path, ["12", 12]) == ["12"] * 2
    else:
        assert SIBLINGS[sibling](tmp_path, ["12", 12, 12.0]) == ["12"] * 3


@pytest.mark.parametrize("sibling", [name for name in SIBLINGS if name != "labels.json"])
@pytest.mark.parametrize("cell", [" ", "nan", "None", "1.23457E+12"])
def test_what_is_no_id_is_refused(tmp_path: Path, sibling: str, cell: str) -> None:
    words = "must not be empty|write a name|has no line such as|write all its digits|is empty"
    refused(words, SIBLINGS[sibling], tmp_path, [cell])


@pytest.mark.parametrize("value", [True, 1.5, None, [1], {}, float("nan"), "", "<NA>"])
def test_what_json_has_that_is_no_id(value: object) -> None:
    with pytest.raises(ValueError, match=r"write a text|must not be empty"):
        id_of(value)


def test_a_number_that_a_spreadsheet_shortened() -> None:
    assert fault_of("4.00638E+12").startswith("write all its digits")
    assert [fault_of(cell) for cell in ("E+12", "5e3", "4006381333931", "1E5")] == [""] * 4


def test_twins_are_told_with_their_lines() -> None:
    cells = ["Wren", "wren", "a b", "a\u00a0 b", "12", "\uff11\uff12", "012", "x", "x\u200b", "y"]
    found = twins(pd.Series(cells, range(2, 12)), Path("t.csv"))
    assert [sentence.count("line") for sentence in found] == [2] * 5
    assert found[0] == "'Wren' (line 2) and 'wren' (line 3) of t.csv"
    assert "(line 6)" in found[2]
    assert "(line 6)" in found[3]


def test_class_folders_of_one_value_are_one_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(*(tmp_path / name / "a.png" for name in ("12", "12.0", "ü", "u\u0308", "shoe/ 7", "Ü")))
    done = describe_folder(tmp_path, tmp_path)
    assert (done.images, done.classes) == (6, 4)
    assert done.merged == {"12.0": "12", "ü": "u\u0308"}
    rows = pd.read_csv(tmp_path / "dataset_info.csv", dtype=str)
    assert set(rows["label"]) == {"12", "ü", "shoe/7", "Ü"}
    assert all((tmp_path / name).is_file() for name in rows["file_name"])
    assert "'ü' (line 5) and 'Ü' (line 6)" in capsys.readouterr().err
