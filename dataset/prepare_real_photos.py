"""Tables for training on real images, and for judging on products that training never saw.

Run from the repository root: python dataset/prepare_real_photos.py --help

The images stay where they are: the challenge's public development set and GroceryStoreDataset
(Klasson et al. 2019), wherever below one folder. The products of the former are split into folds
(two where nothing is said): one is the development set, the others train.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.common.errors import UserError, run_command
from visual_search.common.ranges import whole_number

if TYPE_CHECKING:
    import pandas as pd

CHALLENGE_FILES = ("gallery.csv", "queries.csv")
GROCERY_FILES = ("classes.csv", "train.txt", "val.txt")
CLASS_ID, CLASS_NAME, ICON = "Class ID (int)", "Class Name (str)", "Iconic Image Path (str)"
TRAINING_COLUMNS = ("file_name", "label", "bbox", "width", "height", "is_test")
GROCERY_TABLE = "train_grocery_store.csv"
PRODUCTS_TABLE = "train_products.csv"
GROCERY_TASK = "grocery_store.csv"
ALL = "all_"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    known = os.getenv("VPR_REAL_DATA")
    parser = argparse.ArgumentParser(
        prog="prepare_real_photos.py",
        description=f"Write {GROCERY_TABLE}, {PRODUCTS_TABLE} (dataset_info.csv tables), and the "
        "other products' gallery.csv and queries.csv. And, to judge models that train on neither, "
        f"all products as {ALL}gallery.csv and {ALL}queries.csv, and {GROCERY_TASK}. No image "
        "is copied: paths are relative to the output folder.",
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path(known) if known else None,
        required=not known,
        help="folder with the challenge's development_test_data/, GroceryStoreDataset/, or both, "
        "found by their tables (default: $VPR_REAL_DATA)",
    )
    add("--output", type=Path, default=Path("dataset/real"), help="folder of the tables")
    add(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="of the order that the products are cut in (default: 0)",
    )
    add("--folds", type=whole_number(2), default=2, help="parts of the products (default: 2)")
    add(
        "--fold",
        type=whole_number(0),
        help="the part that is judged, from 0; the others train (default: the last)",
    )
    found = parser.parse_args(arguments)
    found.fold = found.folds - 1 if found.fold is None else found.fold
    if found.fold >= found.folds:
        parser.error(f"--fold {found.fold}: of {found.folds} folds the last is {found.folds - 1}")
    return found


def split(products: Iterable[int], seed: int, folds: int = 2) -> list[set[int]]:
    """Disjoint parts of the product ids, whose sizes differ by one at most.

    The ids are sorted, shuffled by Python's `random.Random(seed)` and cut; of an odd number of ids
    the second half is the larger one.
    """
    ids = sorted(set(products))
    random.Random(seed).shuffle(ids)
    ends = [len(ids) * fold // folds for fold in range(folds + 1)]
    return [set(ids[low:high]) for low, high in pairwise(ends)]


def find_folder(data: Path, files: Sequence[str], output: Path | None = None) -> Path | None:
    """The folder at most two levels below `data` that has all of `files`; None: there is none.

    `output` is not meant, for it has tables of ours.

    Raises:
        UserError: when there are several.
    """
    found = [
        path.parent
        for depth in ("", "*/", "*/*/")
        for path in sorted(data.glob(depth + files[0]))
        if all((path.parent / name).is_file() for name in files)
        and (output is None or path.parent.resolve() != output.resolve())
    ]
    if len(found) > 1:
        raise UserError(
            f"{found[0]} and {found[1]} both have {' and '.join(files)}: name one of them, or a "
            "folder that has one alone, with --data"
        )
    return found[0] if found else None


def prepare(
    data: Path, output: Path, seed: int = 0, folds: int = 2, fold: int = 1
) -> dict[str, int]:
    """Write the tables of the challenge's development set, of GroceryStoreDataset, or both.

    They are looked for below `data`; paths are relative to `output`. Part `fold` of the products'
    :func:`split` into `folds` is judged. Returns the rows of each table, by file name.

    Raises:
        UserError: when there is neither; for a missing file or column, an id that is no whole
            number, and fewer products than folds.
    """
    from visual_search.common.files import write_csv

    challenge = find_folder(data, CHALLENGE_FILES, output)
    grocery = find_folder(data, GROCERY_FILES)
    if challenge is None and grocery is None:
        raise UserError(
            f"{data} holds neither the challenge's development set ({', '.join(CHALLENGE_FILES)}) "
            f"nor GroceryStoreDataset ({', '.join(GROCERY_FILES)}): name their folder with --data"
        )
    tables: dict[str, pd.DataFrame] = {}
    if grocery:
        images = list(_grocery_rows(grocery))
        tables[GROCERY_TABLE] = _table(grocery, output, images)
        # Phone images ask for the catalogue's, and none trains.
        tables[GROCERY_TASK] = tables[GROCERY_TABLE].assign(
            is_test=1,
            evaluation_status=["query" if name[:1] != "/" else "gallery" for name, *_ in images],
        )
    if challenge:
        tables |= _challenge_split(challenge, output, seed, folds, fold)
    for name, table in tables.items():
        write_csv(output / name, table)
    return {name: len(table) for name, table in tables.items()}


def _challenge_split(
    folder: Path, output: Path, seed: int, folds: int, fold: int
) -> dict[str, pd.DataFrame]:
    """The products of one fold to judge, the others to train on, and all."""
    sides = _challenge_tables(folder)
    products = set(sides["gallery.csv"]["product"])
    if len(products) < folds:
        raise UserError(
            f"{folder / 'gallery.csv'} has fewer products ({len(products)}) than --folds ({folds})"
        )
    held_out = split(products, seed, folds)[fold]
    train = products - held_out
    tables = {PRODUCTS_TABLE: _table(folder, output, _product_rows(sides.values(), train))}
    for name, side in sides.items():
        moved = side.assign(
            img_path=[_relative(folder / path, output) for path in side["img_path"]]
        )
        tables[f"{ALL}{name}"] = moved.drop(columns="product")
        tables[name] = moved[side["product"].isin(held_out)].drop(columns="product")
    return tables


def _relative(image: Path, output: Path) -> str:
    return os.path.relpath(os.path.join(image.parent.resolve(), image.name), output.resolve())


def _challenge_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Gallery and queries as text, with the product ids as numbers in a column `product`."""
    from visual_search.data.schema import BOX_COLUMNS, check_table, integers
    from visual_search.data.tables import read_gallery, read_queries

    queries = folder / "queries.csv"
    check_table(read_queries(queries)[[*BOX_COLUMNS]], queries)
    sides = {}
    for read, name in ((read_gallery, "gallery.csv"), (read_queries, "queries.csv")):
        table = read(folder / name)
        if "product_id" not in table.columns:
            raise UserError(f"{folder / name} has no column 'product_id'")
        sides[name] = table.assign(product=integers(table, "product_id", folder / name))
    return sides


def grocery_images(
    folder: Path, columns: Sequence[str] = ()
) -> Iterator[tuple[str, str, dict[Hashable, str]]]:
    """Part (`train`, `val`), path below the folder, and row of classes.csv of each phone image.

    Ids, names and `columns` are there.

    Raises:
        UserError: naming file, line or column of what is wrong.
    """
    from dataset.sources.base import split_lines
    from visual_search.data.tables import ids_of, read_table, rows_by
    from visual_search.data.values import value_of

    listed = folder / "classes.csv"
    classes = read_table(listed, [CLASS_ID, CLASS_NAME, *columns])
    classes = classes.assign(**{CLASS_NAME: ids_of(classes, CLASS_NAME, listed)})
    by_id = rows_by(classes, CLASS_ID, listed)
    for part in ("train", "val"):
        for place, fields in split_lines(folder / f"{part}.txt", 3, separator=","):
            path, number = fields[0].strip(), value_of(fields[1])
            if number not in by_id:
                raise UserError(
                    f"{place}: {','.join(fields)!r} is not `path, class id, coarse "
                    "class id` with a class of classes.csv"
                )
            yield part, path, by_id[number]


def _grocery_rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Path below the folder, label and box (empty) of each image; a catalogue's path has a `/`.

    The shop's catalogue image of a class is one more image of it: sellers' images beside phone
    images are what the challenge asks to bring together.
    """
    from visual_search.data.tables import ids_of, read_table

    for _, path, row in grocery_images(folder):
        yield path, f"grocery_store/{row[CLASS_NAME]}", ""
    classes = read_table(folder / "classes.csv", [CLASS_NAME, ICON])
    names = ids_of(classes, CLASS_NAME, folder / "classes.csv")
    for name, image in zip(names, classes[ICON], strict=True):
        yield f"/{image.lstrip('/')}", f"grocery_store/{name}", ""


def _product_rows(
    sides: Iterable[pd.DataFrame], products: set[int]
) -> Iterable[tuple[str, str, str]]:
    """Path below the folder, label and box of the images of `products`.

    Sellers' images count whole, users' by their box.
    """
    from visual_search.data.schema import BOX_COLUMNS

    for side in sides:
        for row in side[side["product"].isin(products)].to_dict("records"):
            box = ",".join(row[column] for column in BOX_COLUMNS if column in row)
            yield row["img_path"], f"vpr/{row['product']}", box


def _table(folder: Path, output: Path, rows: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """The common training table, with each image's stored size."""
    import pandas as pd

    from visual_search.data.image_files import UnreadableImage, stored_size

    records = []
    for name, label, box in rows:
        path = folder / name.lstrip("/")
        try:
            width, height = stored_size(path)
        except UnreadableImage as error:
            raise UserError(f"the image {path} cannot be read: {error}") from None
        records.append((_relative(path, output), label, box, width, height, 0))
    return pd.DataFrame(records, columns=list(TRAINING_COLUMNS))


def main() -> None:
    """Write the tables and say how many rows each has."""
    arguments = parse_arguments()
    for name, rows in prepare(**vars(arguments)).items():
        print(f"{arguments.output / name}: {rows} images")


if __name__ == "__main__":
    run_command(main)
