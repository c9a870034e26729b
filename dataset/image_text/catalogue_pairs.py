"""A catalogue with names as a table of pairs: the demo's furniture, or groceries.

python dataset/image_text/catalogue_pairs.py --output dataset/demo_text/pairs.parquet
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.prepare_real_photos import CLASS_ID, CLASS_NAME, grocery_images
from visual_search.common.errors import UserError, run_command
from visual_search.common.files import read_text

if TYPE_CHECKING:
    import pyarrow as pa


def catalogue_pairs(
    folder: Path, languages: Sequence[str] = ("ru",), start: Path | None = None
) -> pa.Table:
    """A catalogue as pairs, its paths relative to the folder `start`, or to its own.

    Of the demo (`products.csv`), training products' images train, the gallery of the others tests;
    each image gets the product's name in each of the languages. Of GroceryStoreDataset
    (`classes.csv`, Klasson et al. 2019), images of train.txt train, those of val.txt test; each
    gets its class's name and description in English; a group is a class, a category what the data
    set calls a coarse class.

    Raises:
        UserError: naming a missing file or column, or for a folder that is no catalogue.
    """
    import pyarrow as pa

    from dataset.image_text.text_normalization import clean
    from visual_search.text.pairs import SCHEMA

    if (folder / "classes.csv").is_file():
        rows = list(_grocery_rows(folder))
    elif (folder / "products.csv").is_file():
        rows = list(_demo_rows(folder, languages))
    else:
        raise UserError(f"{folder} has neither products.csv nor classes.csv: it is no catalogue")
    prefix = Path(os.path.relpath(folder.resolve(), (start or folder).resolve()))
    for row in rows:
        row["image"] = Path(row["image_path"]).stem
        row["image_path"] = str(prefix / row["image_path"])
        row["texts"] = list(map(clean, row["queries"], row["language"]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _demo_rows(folder: Path, languages: Sequence[str]) -> Iterator[dict[str, Any]]:
    from visual_search.data.tables import ids_of, read_table, rows_by
    from visual_search.text.pairs import TEST, TRAIN

    names = [f"name_{language}" for language in languages]
    listed = folder / "products.csv"
    products = read_table(listed, ["product_id", *names, "category", "class"])
    products["product_id"] = ids_of(products, "product_id", listed)
    trains = products[products["class"].str.strip() != ""]
    by_id, by_class = rows_by(products, "product_id", listed), rows_by(trains, "class", listed)
    trained = "name", "class", by_class, TRAIN
    judged = "img_path", "product_id", by_id, TEST
    for table, place, image, key, known, split in (
        ("Product10K/train.csv", "Product10K/train", *trained),
        ("Product10K/test_kaggletest.csv", "Product10K/test", *trained),
        ("development_test_data/gallery.csv", "development_test_data", *judged),
    ):
        rows = read_table(folder / table, [image, key])
        ids = ids_of(rows, key, folder / table)
        for line, of, name in zip(rows.index, ids, rows[image], strict=True):
            product = known.get(of)
            if product is None:
                raise UserError(f"{folder / table} line {line}: {key} {of!r} is not in {listed}")
            said, group = [product[name] for name in names], product["product_id"]
            if not all(map(str.strip, said)):
                raise UserError(f"{listed}: the product {group!r} lacks one of {', '.join(names)}")
            yield {
                "image_path": f"{place}/{name}",
                "queries": said,
                "language": list(languages),
                "group": group,
                "category": product["category"],
                "split": split,
            }


def _grocery_rows(folder: Path) -> Iterator[dict[str, Any]]:
    from visual_search.text.pairs import TEST, TRAIN

    coarse, description = "Coarse Class Name (str)", "Product Description Path (str)"
    for part, path, of in grocery_images(folder, [coarse, description]):
        text = read_text(folder / of[description].lstrip("/"))
        name, category = (of[column].replace("-", " ") for column in (CLASS_NAME, coarse))
        said, split = [name, " ".join(text.split())], TRAIN if part == "train" else TEST
        yield {
            "image_path": path,
            "queries": said,
            "language": ["en", "en"],
            "group": of[CLASS_ID],
            "category": category,
            "split": split,
        }


def main() -> None:
    """Write the table and say what is in it."""
    parser = argparse.ArgumentParser(
        prog="catalogue_pairs.py",
        description="Write the images of a catalogue with the names of their products as a table "
        "of pairs (parquet). No image is copied: paths are relative to the table's folder.",
    )
    add = parser.add_argument
    add(
        "--catalogue",
        type=Path,
        default=Path("dataset/demo"),
        help="folder of the demo (products.csv) or of GroceryStoreDataset (classes.csv) "
        "(%(default)s)",
    )
    add(
        "--language",
        choices=("ru", "en"),
        nargs="+",
        default=["ru"],
        help="of the demo's names, one or both (ru)",
    )
    add(
        "--output",
        type=Path,
        default=Path("dataset/demo_text/pairs.parquet"),
        help="the table (%(default)s)",
    )
    arguments = parser.parse_args()
    from visual_search.text.pairs import write_pairs

    folder, output = arguments.catalogue, arguments.output
    table = catalogue_pairs(folder, arguments.language, output.parent)
    write_pairs(output, table)
    counts = table["split"].value_counts().to_pylist()
    parts = ", ".join(f"{count['counts']} {count['values']}" for count in counts)
    print(f"{output}: {table.num_rows} images ({parts})")


if __name__ == "__main__":
    run_command(main)
