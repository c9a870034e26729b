"""A catalogue with names as a table of pairs: the demo's furniture, or groceries.

python dataset/image_text/catalogue_pairs.py --output dataset/demo_text/pairs.parquet
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.prepare_real_photos import CLASS_ID, CLASS_NAME, grocery_images
from visual_search.common.errors import UserError, run_command
from visual_search.common.files import read_text

if TYPE_CHECKING:
    import pyarrow as pa

LANGUAGES = ("ru", "en")


@dataclass(frozen=True)
class NamedImage:
    """An image and what is said of the product on it."""

    path: Path
    texts: tuple[str, ...]
    languages: tuple[str, ...]
    product: str
    category: str
    split: str


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
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
        choices=LANGUAGES,
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
    return parser.parse_args(arguments)


def catalogue_pairs(folder: Path, languages: Sequence[str] = ("ru",)) -> pa.Table:
    """The demo as pairs: training products' images train, the gallery of the others tests.

    Each image gets the product's name in each of the languages. Paths are relative to `folder`; a
    UserError names a missing file or column.
    """
    return _pairs(_demo_images(folder, languages), folder)


def grocery_pairs(folder: Path) -> pa.Table:
    """GroceryStoreDataset (Klasson et al. 2019): a class's name and description, in English.

    Images of train.txt train, those of val.txt test; a group is a class, a category what the data
    set calls a coarse class. A UserError names a missing file or column.
    """
    return _pairs(_grocery_images(folder), folder)


def _demo_images(folder: Path, languages: Sequence[str]) -> Iterator[NamedImage]:
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
            said, group = tuple(product[name] for name in names), product["product_id"]
            if not all(map(str.strip, said)):
                raise UserError(f"{listed}: the product {group!r} lacks one of {', '.join(names)}")
            path = folder / place / name
            yield NamedImage(path, said, tuple(languages), group, product["category"], split)


def _grocery_images(folder: Path) -> Iterator[NamedImage]:
    from visual_search.text.pairs import TEST, TRAIN

    coarse, description = "Coarse Class Name (str)", "Product Description Path (str)"
    for part, path, of in grocery_images(folder, [coarse, description]):
        text = folder / of[description].lstrip("/")
        name, category = (of[column].replace("-", " ") for column in (CLASS_NAME, coarse))
        said = name, " ".join(read_text(text).split())
        split = TRAIN if part == "train" else TEST
        yield NamedImage(folder / path, said, ("en", "en"), of[CLASS_ID], category, split)


def _pairs(images: Iterator[NamedImage], folder: Path) -> pa.Table:
    import pyarrow as pa

    from dataset.image_text.text_normalization import clean
    from visual_search.text.pairs import SCHEMA

    rows = [
        {
            "image_path": str(image.path.relative_to(folder)),
            "image": image.path.stem,
            "queries": list(image.texts),
            "texts": list(map(clean, image.texts, image.languages)),
            "language": list(image.languages),
            "group": image.product,
            "category": image.category,
            "split": image.split,
        }
        for image in images
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def relative_to(table: pa.Table, folder: Path, output: Path) -> pa.Table:
    """The same table with paths relative to the folder of `output` instead of `folder`."""
    import pyarrow as pa

    prefix = Path(os.path.relpath(folder.resolve(), output.parent.resolve()))
    paths = [str(prefix / path) for path in table["image_path"].to_pylist()]
    place = table.schema.get_field_index("image_path")
    return table.set_column(place, "image_path", pa.array(paths))


def main() -> None:
    """Write the table and say what is in it."""
    arguments = parse_arguments()
    from visual_search.text.pairs import write_pairs

    folder: Path = arguments.catalogue
    if (folder / "classes.csv").is_file():
        table = grocery_pairs(folder)
    elif (folder / "products.csv").is_file():
        table = catalogue_pairs(folder, arguments.language)
    else:
        raise UserError(f"{folder} has neither products.csv nor classes.csv: it is no catalogue")
    write_pairs(arguments.output, relative_to(table, folder, arguments.output))
    counts = table["split"].value_counts().to_pylist()
    parts = ", ".join(f"{count['counts']} {count['values']}" for count in counts)
    print(f"{arguments.output}: {table.num_rows} images ({parts})")


if __name__ == "__main__":
    run_command(main)
