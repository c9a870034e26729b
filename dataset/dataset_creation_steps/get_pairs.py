"""Step 1: the products whose reviews have images.

python dataset/dataset_creation_steps/get_pairs.py X.json.gz --meta meta_X.json.gz
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.dataset_creation_steps.engine import add_runner_options, start_engine
from visual_search.common.errors import UserError, print_next, run_command
from visual_search.common.files import read_json, write_json, written_atomically
from visual_search.common.locks import work_folder

if TYPE_CHECKING:
    from dataset.dataset_creation_steps.reviews import Row

PRODUCTS_A_GROUP = 1000
"""Products of a row group, which is also what one snapshot of step 2 holds."""
ROWS_A_GROUP = 4096
"""Of what is read, before it is joined."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="get_pairs.py",
        description="Step 1: write a parquet file of the products that have images of their own "
        "and reviews with images. Junk and broken lines are counted, never fatal.",
    )
    add = parser.add_argument
    add("reviews", type=Path, help="<Category>.json or .json.gz, a review a line")
    add("--meta", type=Path, help="products of the category (default: meta_<reviews> beside it)")
    add("--output", type=Path, help="default: the reviews' name with .parquet, beside them")
    add_runner_options(parser)
    return parser.parse_args(arguments)


def category_file(name: Path) -> Path:
    """The file of this name, gzipped or not, whichever is there."""
    if name.is_file():
        return name
    other = name.with_suffix("") if name.suffix == ".gz" else name.with_name(f"{name.name}.gz")
    return other if other.is_file() else name


def default_output(reviews: Path) -> Path:
    """`<Category>.parquet` beside `<Category>.json.gz`."""
    name = reviews.name.removesuffix(".gz").removesuffix(".json")
    return reviews.with_name(f"{name}.parquet")


def summary_file(pairs: Path) -> Path:
    """Where the counts of step 1 are."""
    return pairs.with_name(f"{pairs.name}.summary.json")


def inputs(reviews: Path, meta: Path) -> list[dict[str, Any]]:
    """What tells one pair of files from another without reading it."""
    return [
        {"name": path.name, "bytes": path.stat().st_size, "changed": path.stat().st_mtime_ns}
        for path in (reviews, meta)
    ]


def is_finished(reviews: Path, meta: Path, output: Path) -> bool:
    """Whether `output` was made of these very files."""
    summary = summary_file(output)
    if not all(path.is_file() for path in (output, summary, reviews, meta)):
        return False
    return bool(read_json(summary).get("inputs") == inputs(reviews, meta))


def get_pairs(reviews: Path, meta: Path, output: Path) -> None:
    """Join reviews and products, one a line, write them, and say what was counted, also as JSON.

    The columns are `asin`, `title`, `product_images` and `user_images` (lists of addresses), sorted
    by asin, :data:`PRODUCTS_A_GROUP` in a row group.

    Raises:
        UserError: when a file is missing or of another kind, or no product has both kinds of
            images.
    """
    from dataset.dataset_creation_steps.reviews import beginning, product, review

    for path in (reviews, meta):
        if not path.is_file():
            raise UserError(f"{path} does not exist")
    print(f"reading {reviews} and {meta}", flush=True)
    with work_folder(output.with_name(f".{output.name}.parts")) as parts:
        summary: dict[str, Any] = {
            "reviews": extract(reviews, review, parts / "reviews.parquet"),
            "products": extract(meta, product, parts / "products.parquet"),
            "inputs": inputs(reviews, meta),
        }
        summary["products"]["duplicate asins, merged"] = _duplicates(parts / "products.parquet")
        summary["pairs"] = _write(_joined(parts), output)
    if not summary["pairs"]["products"]:
        output.unlink(missing_ok=True)
        raise UserError(
            f"no product of {meta} (it begins {beginning(meta)}) has images and a review with "
            f"images in {reviews} (it begins {beginning(reviews)}): do both files belong to the "
            f"same category? counted: {json.dumps(summary)}"
        )
    write_json(summary_file(output), summary)
    for part in ("reviews", "products"):
        print(f"{part}: " + ", ".join(f"{n} {what}" for what, n in summary[part].items()))
    pairs = summary["pairs"]
    print(
        f"{output}: {pairs['products']} products with {pairs['product_images']} images of the "
        f"shop and {pairs['user_images']} of buyers; the counts are in {summary_file(output)}",
        flush=True,
    )


def extract(path: Path, reader: Callable[..., Row | None], output: Path) -> dict[str, int]:
    """Read a file once by :func:`reviews.review` or `product`, keep rows with images, and count."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.reviews import Fields, read_objects

    tally: Counter[str] = Counter()
    text = pa.string()
    schema = pa.schema([("asin", text), ("title", text), ("urls", pa.list_(text))])
    rows: list[Any] = []
    with pq.ParquetWriter(output, schema) as writer:
        # An empty block behind the last one writes what is left.
        for block in itertools.chain(read_objects(path, tally, Fields), [[]]):
            rows += [row for fields in block if (row := reader(fields, tally)) is not None]
            if rows and (len(rows) >= ROWS_A_GROUP or not block):
                columns = [list(column) for column in zip(*rows, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=schema))
                rows.clear()
    return dict(sorted(tally.items()))


def _frame(path: Path) -> Any:
    """The rows of a parquet file, for the engine, which takes names for patterns."""
    import daft

    return daft.read_parquet(re.sub(r"([][*?{}\\])", r"\\\1", str(path)))


def _duplicates(products: Path) -> int:
    """Rows whose asin an earlier row had."""
    asins = _frame(products).select("asin")
    return int(asins.count_rows() - asins.distinct().count_rows())


def _joined(parts: Path) -> Any:
    """A row for each product with both kinds of images, sorted by asin."""
    import daft

    def images(rows: Any, column: str) -> Any:
        lists = rows.select("asin", "urls").explode("urls")
        return lists.groupby("asin").agg(daft.col("urls").list_agg_distinct().alias(column))

    users = images(_frame(parts / "reviews.parquet"), "user_images")
    # Only what reviews have images of goes on from here: most products have none.
    products = _frame(parts / "products.parquet")
    wanted = products.join(users.select("asin"), on="asin", how="semi")
    titles = wanted.groupby("asin").agg(daft.col("title").max())
    return (
        titles.join(images(wanted, "product_images"), on="asin").join(users, on="asin").sort("asin")
    )


def _write(joined: Any, output: Path) -> dict[str, int]:
    """Write the parquet file; how many products and images it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.reviews import unique_images

    columns = ("product_images", "user_images")
    lists = [(name, pa.list_(pa.string())) for name in columns]
    schema = pa.schema([("asin", pa.string()), ("title", pa.string()), *lists])
    counts = Counter({"products": 0, **dict.fromkeys(columns, 0)})
    rows = (row for batch in joined.to_arrow_iter() for row in batch.to_pylist())
    with written_atomically(output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while group := list(itertools.islice(rows, PRODUCTS_A_GROUP)):
            for row, name in itertools.product(group, columns):
                row[name] = unique_images(row[name])
                counts[name] += len(row[name])
            counts["products"] += len(group)
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return dict(counts)


def main() -> None:
    """Write the pairs and say what was found."""
    arguments = parse_arguments()
    reviews = category_file(arguments.reviews)
    meta = arguments.meta or category_file(reviews.with_name(f"meta_{reviews.name}"))
    output = arguments.output or default_output(reviews)
    start_engine(arguments.runner, arguments.ray_address)
    get_pairs(reviews, meta, output)
    print_next("dataset/dataset_creation_steps/extract_features.py", output)


if __name__ == "__main__":
    run_command(main)
