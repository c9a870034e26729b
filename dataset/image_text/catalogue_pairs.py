"""A catalogue with names as a table of pairs: the demo's furniture, or the grocery photos.

python dataset/image_text/catalogue_pairs.py --output dataset/demo_text/pairs.parquet
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.common.errors import UserError, run_command

if TYPE_CHECKING:
    import pyarrow as pa

LANGUAGES = ("ru", "en")


@dataclass(frozen=True)
class NamedPhoto:
    """A photo and what is said of the product on it."""

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
        description="Write the photos of a catalogue with the names of their products as a table "
        "of pairs (parquet). No photo is copied: paths are relative to the table's folder.",
    )
    parser.add_argument(
        "--catalogue",
        type=Path,
        default=Path("dataset/demo"),
        help="folder of the demo (products.csv) or of GroceryStoreDataset (classes.csv) "
        "(%(default)s)",
    )
    parser.add_argument(
        "--language",
        choices=LANGUAGES,
        nargs="+",
        default=["ru"],
        help="of the demo's names, one or both (ru)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("dataset/demo_text/pairs.parquet"),
        help="the table (%(default)s)",
    )
    return parser.parse_args(arguments)


def catalogue_pairs(folder: Path, languages: Sequence[str] = ("ru",)) -> pa.Table:
    """The demo's catalogue: training products' photos train, the gallery of the others tests.

    Args:
        folder: with `products.csv`, `Product10K/` and `development_test_data/`.
        languages: of the names, ru, en or both; each photo gets the name in each.

    Returns:
        A table of pairs whose `image_path` is relative to `folder`.

    Raises:
        UserError: for a missing file or column.
    """
    return _pairs(_demo_photos(folder, languages), folder)


def grocery_pairs(folder: Path) -> pa.Table:
    """GroceryStoreDataset (Klasson et al. 2019): a class's name and description, in English.

    Photos of train.txt train, those of val.txt test; a group is a class, a category what the data
    set calls a coarse class.

    Raises:
        UserError: for a missing file or column.
    """
    return _pairs(_grocery_photos(folder), folder)


def _demo_photos(folder: Path, languages: Sequence[str]) -> Iterator[NamedPhoto]:
    from visual_search.data.tables import read_table
    from visual_search.text.pairs import TEST, TRAIN

    names = [f"name_{language}" for language in languages]
    products = read_table(folder / "products.csv", ["product_id", *names, "category", "class"])
    by_class = {row["class"]: row for _, row in products.iterrows() if row["class"]}
    by_id = {row["product_id"]: row for _, row in products.iterrows()}
    lists = [
        ("Product10K/train.csv", "name", "class", "Product10K/train", by_class, TRAIN),
        ("Product10K/test_kaggletest.csv", "name", "class", "Product10K/test", by_class, TRAIN),
        (
            "development_test_data/gallery.csv",
            "img_path",
            "product_id",
            "development_test_data",
            by_id,
            TEST,
        ),
    ]
    for table, photo, key, place, known, split in lists:
        for _, row in read_table(folder / table, [photo, key]).iterrows():
            product = known.get(row[key])
            if product is None:
                raise UserError(
                    f"{folder / table}: {key} {row[key]!r} is not in {folder / 'products.csv'}"
                )
            yield NamedPhoto(
                folder / place / row[photo],
                tuple(product[name] for name in names),
                tuple(languages),
                product["product_id"],
                product["category"],
                split,
            )


def _grocery_photos(folder: Path) -> Iterator[NamedPhoto]:
    from visual_search.data.tables import read_table
    from visual_search.text.pairs import TEST, TRAIN

    columns = [
        "Class Name (str)",
        "Class ID (int)",
        "Coarse Class Name (str)",
        "Product Description Path (str)",
    ]
    classes = {}
    for _, row in read_table(folder / "classes.csv", columns).iterrows():
        name, number, coarse, description = (row[column] for column in columns)
        text = _read(folder / description.lstrip("/"))
        classes[number] = (_words(name), " ".join(text.split()), _words(coarse))
    for table, split in (("train.txt", TRAIN), ("val.txt", TEST)):
        lines = _read(folder / table).splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            path, _, rest = (part.strip() for part in line.partition(","))
            known = rest.partition(",")[0].strip()
            if known not in classes:
                raise UserError(
                    f"{folder / table} line {number}: {line!r} is not `path, class id, coarse "
                    "class id` with a class of classes.csv"
                )
            name, description, coarse = classes[known]
            said = (name, description)
            yield NamedPhoto(folder / path, said, ("en", "en"), known, coarse, split)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None


def _words(name: str) -> str:
    return name.replace("-", " ")


def _pairs(photos: Iterator[NamedPhoto], folder: Path) -> pa.Table:
    import pyarrow as pa

    from dataset.image_text.cleaning import clean
    from visual_search.text.pairs import SCHEMA

    rows = [
        {
            "image_path": str(photo.path.relative_to(folder)),
            "image": photo.path.stem,
            "queries": list(photo.texts),
            "texts": [
                clean(text, language)
                for text, language in zip(photo.texts, photo.languages, strict=True)
            ],
            "language": list(photo.languages),
            "group": photo.product,
            "category": photo.category,
            "split": photo.split,
        }
        for photo in photos
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
    print(f"{arguments.output}: {table.num_rows} photos ({parts})")


if __name__ == "__main__":
    run_command(main)
