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

    from visual_search.data.dataset_info import InfoRow

CHALLENGE_FILES = ("gallery.csv", "queries.csv")
GROCERY_FILES = ("classes.csv", "train.txt", "val.txt")
CLASS_ID, CLASS_NAME, ICON = "Class ID (int)", "Class Name (str)", "Iconic Image Path (str)"
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
            number, an image that cannot be read, and fewer products than folds.
    """
    from visual_search.common.files import write_csv
    from visual_search.data.dataset_info import write_dataset_info

    challenge = find_folder(data, CHALLENGE_FILES, output)
    grocery = find_folder(data, GROCERY_FILES)
    if challenge is None and grocery is None:
        raise UserError(
            f"{data} holds neither the challenge's development set ({', '.join(CHALLENGE_FILES)}) "
            f"nor GroceryStoreDataset ({', '.join(GROCERY_FILES)}): name their folder with --data"
        )
    tables: dict[str, list[InfoRow]] = {}
    lists: dict[str, pd.DataFrame] = {}
    if grocery:
        rows = _sized(_grocery_rows(grocery), output)
        tables[GROCERY_TABLE] = [row._replace(evaluation_status="", is_test=False) for row in rows]
        tables[GROCERY_TASK] = rows
    if challenge:
        rows, lists = _challenge_split(challenge, output, seed, folds, fold)
        tables[PRODUCTS_TABLE] = _sized(rows, output)
    for name, rows in tables.items():
        judged = ("evaluation_status",) if name == GROCERY_TASK else ()
        write_dataset_info(output / name, rows, ("bbox", *judged))
    for name, table in lists.items():
        write_csv(output / name, table)
    return {name: len(rows) for name, rows in (tables | lists).items()}


def _challenge_split(
    folder: Path, output: Path, seed: int, folds: int, fold: int
) -> tuple[list[InfoRow], dict[str, pd.DataFrame]]:
    """Images of the products that train, and lists to judge: of one fold's products, and of all.

    Sellers' images train whole, users' by their box.
    """
    from visual_search.data.dataset_info import InfoRow
    from visual_search.data.schema import BOX_COLUMNS, check_table, integers
    from visual_search.data.tables import image_items, read_gallery, read_queries, tell

    queries = folder / "queries.csv"
    check_table(read_queries(queries)[[*BOX_COLUMNS]], queries)
    sides = {}
    for read, name in ((read_gallery, "gallery.csv"), (read_queries, "queries.csv")):
        table = read(folder / name)
        if "product_id" not in table.columns:
            raise UserError(f"{folder / name} has no column 'product_id'")
        sides[name] = table, integers(table, "product_id", folder / name)
    products = set(sides["gallery.csv"][1].tolist())
    if len(products) < folds:
        raise UserError(
            f"{folder / 'gallery.csv'} has fewer products ({len(products)}) than --folds ({folds})"
        )
    if alone := sum(product not in products for product in sides["queries.csv"][1].tolist()):
        tell(f"{queries}: {alone} queries without a match are in {ALL}queries.csv alone")
    held_out = split(products, seed, folds)[fold]
    rows, lists = [], {}
    for name, (side, ids) in sides.items():
        items = image_items(side, folder)
        for item, product in zip(items, ids, strict=True):
            if product in products - held_out:
                rows.append(InfoRow(str(item.path), f"vpr/{product}", bbox=item.box))
        moved = side.assign(img_path=[_relative(item.path, output) for item in items])
        lists[f"{ALL}{name}"] = moved
        lists[name] = moved[[product in held_out for product in ids]]
    return rows, lists


def _relative(image: Path, output: Path) -> str:
    return os.path.relpath(os.path.join(image.parent.resolve(), image.name), output.resolve())


def _sized(rows: Iterable[InfoRow], output: Path) -> list[InfoRow]:
    """The rows with each image's stored size, and paths relative to `output`.

    Raises:
        UserError: for an image that cannot be read.
    """
    from visual_search.data.dataset_info import Broken, with_sizes

    broken: Broken = []
    sized = list(with_sizes(rows, Path(), broken))
    for name, reason in broken:
        raise UserError(f"the image {name} cannot be read: {reason}")
    return [row._replace(file_name=_relative(Path(row.file_name), output)) for row in sized]


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


def _grocery_rows(folder: Path) -> Iterator[InfoRow]:
    """Phone images, as queries, and the shop's catalogue image of each class, as the gallery.

    A catalogue image is one more image of its class: sellers' images beside phone images are what
    the challenge asks to bring together.
    """
    from visual_search.data.dataset_info import InfoRow
    from visual_search.data.tables import ids_of, read_table

    listed = folder / "classes.csv"
    classes = read_table(listed, [CLASS_NAME, ICON])
    icons = zip(classes[ICON].str.lstrip("/"), ids_of(classes, CLASS_NAME, listed), strict=True)
    phones = ((path, row[CLASS_NAME]) for _, path, row in grocery_images(folder))
    for status, images in (("query", phones), ("gallery", icons)):
        for path, name in images:
            image, label = str(folder / path), f"grocery_store/{name}"
            yield InfoRow(image, label, evaluation_status=status, is_test=True)


def main() -> None:
    """Write the tables and say how many rows each has."""
    arguments = parse_arguments()
    for name, rows in prepare(**vars(arguments)).items():
        print(f"{arguments.output / name}: {rows} images")


if __name__ == "__main__":
    run_command(main)
