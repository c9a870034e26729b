"""Development sets: the challenge's layout, or a table's rows that do not train.

Query against gallery, or each image against all others (leave-one-out).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.data.datasets import check_some_exist
from visual_search.data.images import ImageItem
from visual_search.data.schema import BOX_COLUMNS, check_table
from visual_search.data.tables import (
    boxes_in,
    compared,
    image_items,
    image_names,
    read_common_table,
    read_gallery,
    read_queries,
    statuses,
    tell,
    tell_twins,
    training_rows,
    values_of,
)


@dataclass(frozen=True)
class DevSet:
    """A development set: images on both sides, and the product that each shows."""

    gallery: list[ImageItem]
    queries: list[ImageItem]
    gallery_products: np.ndarray
    query_products: np.ndarray
    own: np.ndarray | None = None
    """`(n_queries,)`, int64: where the queries are images of the gallery (leave-one-out), the row
    of each, which is never ranked for itself; None where they are others."""

    @property
    def unmatched(self) -> int:
        """Queries without an image of their product in the gallery (beside themselves)."""
        counts = pd.Series(self.gallery_products).value_counts()
        found = counts.reindex(self.query_products, fill_value=0)
        return int((found <= (self.own is not None)).sum())

    def right_rows(self, query: int) -> np.ndarray:
        """The gallery's rows of a query's product, beside the query itself."""
        rows = np.flatnonzero(self.gallery_products == self.query_products[query])
        return rows if self.own is None else rows[rows != self.own[query]]

    def describe(self) -> str:
        """How much there is, in words."""
        words = f"{len(self.queries)} queries, {len(self.gallery)} gallery images"
        count = self.unmatched
        return words + (f"; {count} queries have no match in the gallery" if count else "")


def read_dev_set(root: Path, gallery: str = "gallery.csv", queries: str = "queries.csv") -> DevSet:
    """Read a development set in the challenge's layout, with its products.

    Raises:
        UserError: naming file, column and line: a missing file or column, an empty table, a box
            that is not four whole numbers or has no area, an empty product id, no query with an
            image in the gallery, most images missing.
    """
    if not root.is_dir():
        raise UserError(
            f"the data folder {root} does not exist; it should hold {gallery}, {queries} and the "
            "images they name"
        )
    tables = {gallery: read_gallery(root / gallery), queries: read_queries(root / queries)}
    for name, table in tables.items():
        if "product_id" not in table.columns:
            raise UserError(f"{root / name} has no column 'product_id': mAP needs it")
        columns = ["img_path", "product_id", *BOX_COLUMNS]
        check_table(table[columns if name == queries else columns[:2]], root / name)
    products = compared(*(values_of(table["product_id"]) for table in tables.values()))
    spelt = [
        pd.Series(ids, [f"{line} of {name}" for line in tables[name].index])
        for ids, name in zip(products, tables, strict=True)
    ]
    tell_twins(pd.concat(spelt), root, "products")
    sides = [image_items(table, root) for table in tables.values()]
    dev_set = DevSet(sides[0], sides[1], products[0], products[1])
    if dev_set.unmatched == len(dev_set.queries):
        raise UserError(
            f"no query of {root / queries} shows a product of {root / gallery}: "
            f"{str(products[1][0])!r} (line {tables[queries].index[0]}) is none of the gallery's, "
            f"such as {str(products[0][0])!r}"
        )
    for items, name in ((dev_set.gallery, gallery), (dev_set.queries, queries)):
        if missing := check_some_exist([item.path for item in items], root / name, root):
            tell(f"{root / name}{missing}")
    tell(f"{root}: {dev_set.describe()}")
    return dev_set


def read_dev_table(
    file: Path,
    root: Path | None = None,
    *,
    fold: int = -1,
    all_rows: bool = False,
    leave_one_out: bool = False,
    select: str = "",
    unmatched: bool = False,
) -> DevSet:
    """The rows of a `dataset_info.csv` or `folds.csv` that do not train, as a development set.

    Where `evaluation_status` names queries, and no fold is asked for, they are ranked against the
    gallery that it names, as their data set's protocol wants it; where it names none (the Met
    data set), against all other rows. Otherwise the held-out rows (`is_test` 1, status test, fold
    -2, and those of `fold`) are ranked leave-one-out: each image is a query against all others.
    Either way, an image that has none of its class to find is no query, unless `unmatched`.

    Args:
        file: the table; see :func:`visual_search.data.datasets.read_training_table`.
        root: folder that its paths are relative to; None is the file's own.
        fold: the fold that is held out of the training; -1 takes the rows that always test.
        all_rows: take those that train as well: of a data set that nothing trains on.
        leave_one_out: whatever `evaluation_status` says of queries and gallery.
        select: regular expression; only rows in whose path it is found take part.
        unmatched: queries with nothing to find (distractors) stay queries.

    Returns:
        The images; a product is the row's label.

    Raises:
        UserError: naming file and line for bad input; for a table without a held-out row, without
            two held-out images of a class (or a query with an image in the gallery), when no image
            of it exists, and for a held-out image that is listed twice.
    """
    table = read_common_table(file)
    trains, status = training_rows(table, file, fold), statuses(table)
    selected = _selected(image_names(table), select, file)
    of_protocol = np.isin(status, ("query", "gallery")) & (not leave_one_out)
    by_protocol = fold < 0 and (of_protocol & selected).any()
    if not by_protocol:
        held_out = (~trains | all_rows) & ~of_protocol
    elif (status == "gallery").any():
        held_out = of_protocol
    else:
        held_out = np.ones(len(table), dtype=bool)
    held_out &= selected
    if not held_out.any():
        raise UserError(
            f"{file} has no held-out row to evaluate on: no is_test 1, evaluation_status test or "
            "fold -2" + (f", and none of fold {fold}" if fold >= 0 else "; or name a fold")
        )
    folder = file.parent if root is None else root
    items = [
        ImageItem(folder / name, box)
        for name, box in zip(image_names(table)[held_out], boxes_in(table[held_out]), strict=True)
    ]
    missing = check_some_exist([item.path for item in items], file, folder)
    labels = table["label"][held_out].to_numpy(dtype=str)
    gallery = asked = np.arange(len(items))
    if by_protocol:
        is_query = status[held_out] == "query"
        gallery, asked = np.flatnonzero(~is_query), np.flatnonzero(is_query)
        matched = np.isin(labels[asked], labels[gallery])
        fault = (
            f"no query of {file} has an image of its class in the gallery: {len(asked)} rows "
            f"have evaluation_status query, and {len(gallery)} are the gallery"
        )
    else:
        _refuse_repeats(items, table.index[held_out].tolist(), file)
        matched = pd.Series(labels).duplicated(keep=False).to_numpy()
        fault = (
            f"no two held-out images of {file} are of the same class ({len(items)} images of as "
            "many classes): there is nothing to find"
        )
    if not matched.any():
        raise UserError(fault)
    queries = asked if unmatched else asked[matched]
    dev_set = DevSet(
        [items[row] for row in gallery],
        [items[row] for row in queries],
        labels[gallery],
        labels[queries],
        None if by_protocol else queries,
    )
    n_left = len(asked) - len(queries)
    left = f"; {n_left} without a match are no queries" if n_left else ""
    tell(f"{file}: {len(table)} rows, {dev_set.describe()}{left}{missing}")
    return dev_set


def _selected(names: pd.Series, select: str, file: Path) -> np.ndarray:
    found = np.array([re.search(select, name) is not None for name in names], dtype=bool)
    if len(names) and not found.any():
        raise UserError(f"select {select!r} is found in none of the {len(names)} paths of {file}")
    return found


def _refuse_repeats(items: list[ImageItem], lines: list[int], file: Path) -> None:
    """An image that is there twice would find its own copy, which proves nothing."""
    seen: dict[ImageItem, int] = {}
    for item, line in zip(items, lines, strict=True):
        first = seen.setdefault(item, line)
        if first != line:
            raise UserError(
                f"{file} line {line} holds out the image {item.path} (with the same box) of line "
                f"{first} again: it would find itself; remove one of the two lines"
            )
