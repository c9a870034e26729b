"""Data sets whose images are listed in csv files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset.sources.base import DataSet, Files
from visual_search.common.errors import UserError
from visual_search.data.dataset_info import InfoRow
from visual_search.data.tables import table_chunks
from visual_search.data.values import value_of


def csv_records(
    path: Path, columns: Sequence[str], may_be_empty: Sequence[str] = ()
) -> Iterator[dict[str, str]]:
    """The rows of a csv file, by the names of columns that it must have, filled or `may_be_empty`.

    Raises:
        UserError: for a missing column, an empty cell, and as
            :func:`visual_search.data.tables.table_chunks`.
    """
    for table in table_chunks(path):
        missing = [name for name in (*columns, *may_be_empty) if name not in table.columns]
        if missing:
            raise UserError(
                f"{path} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(map(repr, table.columns))}"
            )
        for line, values in zip(table.index, table.to_dict("records"), strict=True):
            empty = [name for name in columns if not values[name].strip()]
            if empty:
                raise UserError(f"{path} line {line}: {empty[0]} is empty")
            yield {str(name): cell for name, cell in values.items()}


def read_products10k(files: Files) -> Iterator[InfoRow]:
    """Bai et al. 2020: training images and labelled test photos, listed in different columns."""
    for table, folder in (("train.csv", "train"), ("test_kaggletest.csv", "test")):
        for record in csv_records(files.file(table), ["name", "class"]):
            path = files.image(f"{folder}/{record['name']}")
            yield InfoRow(path, record["class"], is_test=folder == "test")


def read_shopee(files: Files) -> Iterator[InfoRow]:
    """Sellers' images and titles; a group is one product. The test photos have no labels.

    Its `image_phash` is not taken over: hashes compare only with those of the same program.
    """
    for record in csv_records(files.file("train.csv"), ["image", "label_group"], ["title"]):
        path = files.image(f"train_images/{record['image']}")
        yield InfoRow(path, record["label_group"], record["title"])


def read_hnm(files: Files) -> Iterator[InfoRow]:
    """One image an article, several articles a product.

    The label is `product_code`: `article_id` would give one image a class. Some articles have
    no image; they count as broken.
    """
    columns = ["article_id", "product_code"]
    for record in csv_records(files.file("articles.csv"), columns, ["prod_name"]):
        # Spreadsheets drop the leading zeros; the folder is the first three of ten digits.
        article = value_of(record["article_id"]).zfill(10)
        product = value_of(record["product_code"]).zfill(7)
        path = files.image(f"images/{article[:3]}/{article}.jpg")
        yield InfoRow(path, product, record["prod_name"])


INDEX = "index_image_to_landmark.csv"
SOLUTION = "retrieval_solution_v2.1.csv"
TRAIN, CLEANED = "train.csv", "train_clean.csv"


def read_glr(files: Files) -> Iterator[InfoRow]:
    """Landmarks (Weyand et al. 2020): training images, and queries against the index.

    What there is a list of is read; of the training images the cleaned one, where it is there.
    """
    trains = files.has(TRAIN) or files.has(CLEANED)
    if files.part == "train" or (not files.part and trains):
        yield from _training(files)
    if files.part == "retrieval" or (not files.part and (files.has(INDEX) or not trains)):
        yield from _retrieval(files)


def _training(files: Files) -> Iterator[InfoRow]:
    """By landmark: an image a line, or, in the cleaned list, a landmark a line."""
    cleaned = files.has(CLEANED)
    columns = ["landmark_id", "images" if cleaned else "id"]
    for record in csv_records(files.file(CLEANED, TRAIN), columns):
        for image in record[columns[1]].split():
            path = files.image(_place("train", image))
            yield InfoRow(path, record["landmark_id"], evaluation_status="train")


def _retrieval(files: Files) -> Iterator[InfoRow]:
    """The images of the index, then the queries; both by landmark.

    The solution lists images of each query. A query is given their landmark; one that nothing is
    listed for gets a label of its own (a distractor), and so does one with images of several
    landmarks or of none: by class its answer cannot be said.
    """
    landmark_of: dict[str, str] = {}
    for record in csv_records(files.file(INDEX), ["id", "landmark_id"]):
        image = record["id"]
        landmark_of[image] = record["landmark_id"]
        path = files.image(_place("index", image))
        yield InfoRow(path, landmark_of[image], evaluation_status="gallery", is_test=True)
    for record in csv_records(files.file(SOLUTION, "retrieval_solution.csv"), ["id", "images"]):
        query = record["id"]
        landmarks = {landmark_of.get(image) for image in record["images"].split()}
        label = landmarks.pop() if len(landmarks) == 1 else None
        yield InfoRow(
            files.image(_place("test", query)),
            f"no_match/{query}" if label is None else label,
            evaluation_status="query",
            is_test=True,
        )


def _place(part: str, image: str) -> str:
    """Folders are named after the first three letters of an id."""
    return f"{part}/{image[0]}/{image[1]}/{image[2]}/{image}.jpg"


DATA_SETS = {
    "products10k": DataSet(
        title="Products-10K",
        page="https://products-10k.github.io/challenge.html",
        layout="train.csv, test_kaggletest.csv, train/ and test/",
        read=read_products10k,
        archives={"train.zip": "train", "test.zip": "test", "products-10k.zip": "train.csv"},
    ),
    "shopee": DataSet(
        title="Shopee Product Matching",
        page="https://www.kaggle.com/competitions/shopee-product-matching/data",
        layout="train.csv and train_images/",
        read=read_shopee,
        columns=("title",),
        archives={"shopee-product-matching.zip": "train_images"},
    ),
    "hnm": DataSet(
        title="H&M Personalized Fashion Recommendations",
        page="https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data",
        layout="articles.csv and images/010/ …",
        read=read_hnm,
        columns=("title",),
        archives={"h-and-m-personalized-fashion-recommendations.zip": "articles.csv"},
    ),
    "glr": DataSet(
        title="Google Landmarks v2",
        page="https://github.com/cvdfoundation/google-landmark",
        layout=f"train/ (train/0/1/2/012….jpg) with {CLEANED} or {TRAIN}; index/ and test/, the "
        f"same, with {INDEX} and {SOLUTION}",
        read=read_glr,
        columns=("evaluation_status",),
        archives={"landmark-retrieval-*.zip": "index"},
        parts=("train", "retrieval"),
    ),
}
