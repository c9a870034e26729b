"""Tables for training on real photos, and for judging on products that training never saw.

Run from the repository root: python dataset/prepare_real_photos.py --help

The photos stay where they are: grocery_store/ (Klasson et al. 2019) and vpr_development_half/
(the challenge's own layout) below one folder. Half of the challenge's products train, the other
half is the development set.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.common.errors import UserError, exit_with_sentence

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_DATA = "../shared/data"
TRAINING_COLUMNS = ("file_name", "label", "bbox", "width", "height", "is_test")
GROCERY_TABLE = "train_grocery_store.csv"
PRODUCTS_TABLE = "train_products.csv"
TASK_COLUMNS = (*TRAINING_COLUMNS, "evaluation_status")
GROCERY_TASK = "grocery_store.csv"
HALF = "half_"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="prepare_real_photos.py",
        description=f"Write {GROCERY_TABLE}, {PRODUCTS_TABLE} (dataset_info.csv tables), and the "
        "other products' gallery.csv and queries.csv. And, to judge models that train on neither, "
        f"all products as {HALF}gallery.csv and {HALF}queries.csv, and {GROCERY_TASK}. No photo "
        "is copied: paths are relative to the output folder.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.getenv("VPR_REAL_DATA", DEFAULT_DATA)),
        help="folder of grocery_store/ and vpr_development_half/ (default: $VPR_REAL_DATA, "
        f"else {DEFAULT_DATA})",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("dataset/real"), help="folder of the tables"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the products' halves (default: 0)")
    parser.add_argument(
        "--swap", action="store_true", help="train on the half that is else judged, and vice versa"
    )
    return parser.parse_args(arguments)


def halves(products: Iterable[int], seed: int) -> tuple[set[int], set[int]]:
    """Two disjoint halves of the product ids; of an odd number the second is larger by one."""
    ids = sorted(set(products))
    random.Random(seed).shuffle(ids)
    return set(ids[: len(ids) // 2]), set(ids[len(ids) // 2 :])


def prepare(data: Path, output: Path, seed: int = 0, swap: bool = False) -> dict[str, int]:
    """Write the tables.

    Args:
        data: folder of `grocery_store/` and `vpr_development_half/`.
        output: where the tables go; their paths are relative to it.
        seed: of the products' halves.
        swap: train on the second half instead of the first.

    Returns:
        Rows of each table, by file name.

    Raises:
        UserError: for a missing file or column, and an id that is no whole number.
    """
    from visual_search.common.files import written_atomically

    gallery, queries = _challenge_tables(data / "vpr_development_half")
    train, held_out = halves(gallery["product"], seed)
    if swap:
        train, held_out = held_out, train
    prefix = Path(os.path.relpath(data.resolve(), output.resolve()))
    sides = {"gallery.csv": gallery, "queries.csv": queries}
    tables = {
        GROCERY_TABLE: _table(data, prefix, _grocery_rows(data / "grocery_store")),
        PRODUCTS_TABLE: _table(data, prefix, _product_rows([gallery, queries], train)),
    }
    for name, side in sides.items():
        folder = prefix / "vpr_development_half"
        side = side.assign(img_path=[str(folder / path) for path in side["img_path"]])
        tables[f"{HALF}{name}"] = side.drop(columns="product")
        tables[name] = side[side["product"].isin(held_out)].drop(columns="product")
    tables[GROCERY_TASK] = _retrieval_table(tables[GROCERY_TABLE])
    for name, table in tables.items():
        with written_atomically(output / name) as temporary:
            table.to_csv(temporary, index=False)
    return {name: len(table) for name, table in tables.items()}


def _challenge_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gallery and queries as text, with the product ids as numbers in a column `product`."""
    from visual_search.data.tables import check_boxes, integers, read_gallery, read_queries

    check_boxes(read_queries(folder / "queries.csv"), folder / "queries.csv")
    sides = []
    for read, name in ((read_gallery, "gallery.csv"), (read_queries, "queries.csv")):
        table = read(folder / name)
        if "product_id" not in table.columns:
            raise UserError(f"{folder / name} has no column 'product_id'")
        sides.append(table.assign(product=integers(table, "product_id", folder / name)))
    return sides[0], sides[1]


def _grocery_rows(folder: Path) -> Iterable[tuple[str, str, str]]:
    """Path below the data folder, label and box (empty) of each grocery photo.

    The shop's catalogue photo of a class is one more photo of it: seller photos beside the
    phone photos are what the challenge asks to bring together.
    """
    from visual_search.data.tables import read_table

    columns = ["Class Name (str)", "Class ID (int)", "Iconic Image Path (str)"]
    classes = read_table(folder / "classes.csv", columns)
    names = dict(zip(classes["Class ID (int)"], classes["Class Name (str)"], strict=True))
    for part in ("train", "val"):
        path = folder / f"{part}.txt"
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fields = [field.strip() for field in text.split(",")]
            if len(fields) != 3 or fields[1] not in names:
                raise UserError(
                    f"{path} line {line}: {text!r} is not `path, class id, coarse class id` with "
                    "a class of classes.csv"
                )
            yield f"{folder.name}/{fields[0]}", f"{folder.name}/{names[fields[1]]}", ""
    catalogue = zip(classes["Class Name (str)"], classes["Iconic Image Path (str)"], strict=True)
    for name, photo in catalogue:
        yield f"{folder.name}/{photo.lstrip('/')}", f"{folder.name}/{name}", ""


def _product_rows(
    sides: Sequence[pd.DataFrame], products: set[int]
) -> Iterable[tuple[str, str, str]]:
    """Path below the data folder, label and box of the photos of `products`.

    Seller photos count whole, user photos by their box.
    """
    from visual_search.data.tables import BOX_COLUMNS

    for side in sides:
        for row in side[side["product"].isin(products)].to_dict("records"):
            box = ",".join(row[column] for column in BOX_COLUMNS if column in row)
            yield f"vpr_development_half/{row['img_path']}", f"vpr/{row['product']}", box


def _table(data: Path, prefix: Path, rows: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """The common training table, with each photo's stored size."""
    import pandas as pd

    from visual_search.data.image_files import UnreadableImage, stored_size

    records = []
    for name, label, box in rows:
        try:
            width, height = stored_size(data / name)
        except UnreadableImage as error:
            raise UserError(f"the photo {data / name} cannot be read: {error}") from None
        records.append((str(prefix / name), label, box, width, height, 0))
    return pd.DataFrame(records, columns=list(TRAINING_COLUMNS))


def _retrieval_table(groceries: pd.DataFrame) -> pd.DataFrame:
    """The groceries as a retrieval task: phone photos ask for the catalogue's, and none trains."""
    phone = groceries["file_name"].str.contains("/grocery_store/(?:train|val)/")
    status = phone.map({True: "query", False: "gallery"})
    table = groceries.assign(is_test=1, evaluation_status=status)
    return table[list(TASK_COLUMNS)]


def main() -> None:
    """Write the tables and say how many rows each has."""
    arguments = parse_arguments()
    written = prepare(arguments.data, arguments.output, arguments.seed, arguments.swap)
    for name, rows in written.items():
        print(f"{arguments.output / name}: {rows} photos")


if __name__ == "__main__":
    exit_with_sentence(main)
