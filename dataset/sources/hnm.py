"""H&M Personalized Fashion Recommendations: one image an article, several articles a product."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Files, csv_records
from visual_search.data.dataset_info import InfoRow
from visual_search.data.values import value_of


def read(files: Files) -> Iterator[InfoRow]:
    """The rows of `articles.csv`.

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


DATA_SET = DataSet(
    title="H&M Personalized Fashion Recommendations",
    page="https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data",
    layout="articles.csv and images/010/ …",
    read=read,
    columns=("title",),
    archives={"h-and-m-personalized-fashion-recommendations.zip": "articles.csv"},
)
