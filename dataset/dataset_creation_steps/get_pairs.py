"""Step 1: the products whose reviews have photos.

python dataset/dataset_creation_steps/get_pairs.py X.json.gz --meta meta_X.json.gz
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.dataset_creation_steps.engine import add_runner_options, start_engine
from visual_search.common.errors import UserError, exit_with_sentence
from visual_search.common.files import write_json, written_atomically

if TYPE_CHECKING:
    import pyarrow as pa

PRODUCTS_A_GROUP = 1000
"""Products of a row group, which is also what one snapshot of step 2 holds."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="get_pairs.py",
        description="Step 1: write a parquet file of the products that have photos of their own "
        "and reviews with photos. Junk and broken lines are counted, never fatal.",
    )
    parser.add_argument("reviews", type=Path, help="<Category>.json or .json.gz, a review a line")
    parser.add_argument(
        "--meta", type=Path, help="products of the category (default: meta_<reviews> beside it)"
    )
    parser.add_argument(
        "--output", type=Path, help="default: the reviews' name with .parquet, beside them"
    )
    add_runner_options(parser)
    return parser.parse_args(arguments)


def default_output(reviews: Path) -> Path:
    """`<Category>.parquet` beside `<Category>.json.gz`."""
    name = reviews.name.removesuffix(".gz").removesuffix(".json")
    return reviews.with_name(f"{name}.parquet")


def summary_file(pairs: Path) -> Path:
    """Where the counts of step 1 are."""
    return pairs.with_name(f"{pairs.name}.summary.json")


def inputs(reviews: Path, meta: Path) -> list[dict[str, Any]]:
    """What tells one pair of files from another without reading it."""
    stats = [(path.name, path.stat()) for path in (reviews, meta)]
    return [
        {"name": name, "bytes": stat.st_size, "changed": stat.st_mtime_ns} for name, stat in stats
    ]


def is_finished(reviews: Path, meta: Path, output: Path) -> bool:
    """Whether `output` was made of these very files."""
    summary = summary_file(output)
    if not (output.is_file() and summary.is_file() and reviews.is_file() and meta.is_file()):
        return False
    return bool(json.loads(summary.read_text("utf-8")).get("inputs") == inputs(reviews, meta))


def get_pairs(reviews: Path, meta: Path, output: Path) -> dict[str, Any]:
    """Join reviews and products.

    Args:
        reviews: a review a line, JSON, plain or gzipped.
        meta: a product a line.
        output: written with the columns `asin`, `title`, `product_images`, `user_images`
            (lists of addresses), sorted by asin, :data:`PRODUCTS_A_GROUP` in a row group.

    Returns:
        What was counted; it is in `<output>.summary.json` as well.

    Raises:
        UserError: when a file is missing, or no product has both kinds of photos.
    """
    for path in (reviews, meta):
        if not path.is_file():
            raise UserError(f"{path} does not exist")
    parts = output.with_name(f".{output.name}.parts")
    shutil.rmtree(parts, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        summary: dict[str, Any] = {
            "reviews": _extract(reviews, "reviews", parts / "reviews"),
            "products": _extract(meta, "products", parts / "products"),
            "inputs": inputs(reviews, meta),
        }
        summary["products"]["duplicate asins, merged"] = _duplicates(parts / "products")
        summary |= _write(_joined(parts), output)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    if not summary["pairs"]["products"]:
        output.unlink(missing_ok=True)
        raise UserError(
            f"no product of {meta} has photos and a review with photos in {reviews}: do both "
            f"files belong to the same category? counted: {json.dumps(summary)}"
        )
    write_json(summary_file(output), summary)
    return summary


def _extract(path: Path, kind: str, folder: Path) -> dict[str, int]:
    """Read a file once and keep its rows with photos in `folder`; its counts."""
    import daft

    from dataset.dataset_creation_steps.reviews import AmazonFile

    AmazonFile(path, kind).read().write_parquet(str(folder))
    ends = daft.read_parquet(f"{folder}/*.parquet").where(daft.col("tally").not_null())
    tally: Counter[str] = Counter()
    for text in ends.select("tally").to_pydict()["tally"]:
        tally.update(json.loads(text))
    return dict(sorted(tally.items()))


def _rows(folder: Path) -> Any:
    import daft

    return daft.read_parquet(f"{folder}/*.parquet").where(daft.col("asin").not_null())


def _duplicates(folder: Path) -> int:
    """Rows of products whose asin an earlier row had."""
    import daft

    sizes = _rows(folder).groupby("asin").agg(daft.col("title").count("all").alias("rows"))
    counted = sizes.agg(daft.col("rows").sum(), daft.col("asin").count().alias("asins")).to_pydict()
    return int((counted["rows"][0] or 0) - counted["asins"][0])


def _joined(parts: Path) -> Any:
    """A row for each product with both kinds of photos, sorted by asin."""
    import daft

    def photos(name: str, column: str) -> Any:
        lists = _rows(parts / name).select("asin", "urls").explode("urls")
        return lists.groupby("asin").agg(daft.col("urls").list_agg_distinct().alias(column))

    users = photos("reviews", "user_images")
    # Only what reviews have photos of goes on from here: most products have none.
    wanted = _rows(parts / "products").join(users.select("asin"), on="asin", how="semi")
    titles = wanted.groupby("asin").agg(daft.col("title").max())
    lists = wanted.select("asin", "urls").explode("urls").groupby("asin")
    shop = lists.agg(daft.col("urls").list_agg_distinct().alias("product_images"))
    return titles.join(shop, on="asin").join(users, on="asin").sort("asin")


def _write(joined: Any, output: Path) -> dict[str, Any]:
    """Write the parquet file; how many products and photos it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = pa.list_(pa.string())
    schema = pa.schema(
        [
            ("asin", pa.string()),
            ("title", pa.string()),
            ("product_images", lists),
            ("user_images", lists),
        ]
    )
    counts = Counter({"products": 0, "product_images": 0, "user_images": 0})
    with written_atomically(output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for group in _groups(joined.to_arrow_iter()):
            table = _unique(group, schema)
            counts["products"] += table.num_rows
            for column in ("product_images", "user_images"):
                counts[column] += len(table[column].combine_chunks().flatten())
            writer.write_table(table)
    return {"pairs": dict(counts)}


def _unique(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    from dataset.dataset_creation_steps.reviews import unique_photos

    for row in rows:
        row["product_images"] = unique_photos(row["product_images"])
        row["user_images"] = unique_photos(row["user_images"])
    return pa.Table.from_pylist(rows, schema=schema)


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for batch in batches:
        for row in batch.to_pylist():
            rows.append(row)
            if len(rows) == PRODUCTS_A_GROUP:
                yield rows
                rows = []
    if rows:
        yield rows


def main() -> None:
    """Write the pairs and say what was found."""
    arguments = parse_arguments()
    reviews: Path = arguments.reviews
    meta = arguments.meta or reviews.with_name(f"meta_{reviews.name}")
    output = arguments.output or default_output(reviews)
    start_engine(arguments.runner, arguments.ray_address)
    print(f"reading {reviews} and {meta}", flush=True)
    summary = get_pairs(reviews, meta, output)
    for part in ("reviews", "products"):
        print(f"{part}: " + ", ".join(f"{n} {what}" for what, n in summary[part].items()))
    pairs = summary["pairs"]
    print(
        f"{output}: {pairs['products']} products with {pairs['product_images']} photos of the "
        f"shop and {pairs['user_images']} of buyers; the counts are in {summary_file(output)}"
    )
    print(f"next: python dataset/dataset_creation_steps/extract_features.py {output}")


if __name__ == "__main__":
    exit_with_sentence(main)
