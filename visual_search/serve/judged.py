"""Queries whose product is known, from a table and from clicks: calibration, and comparisons."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from visual_search.common.errors import UserError
from visual_search.common.files import write_csv, write_text
from visual_search.common.page import markdown
from visual_search.data.dev_sets import DevSet
from visual_search.data.images import ImageItem
from visual_search.data.schema import BOX_COLUMNS, check_table
from visual_search.data.tables import compared, ids_of, image_items, read_queries, tell
from visual_search.evaluation.compare import compare, comparison_rows, verdict
from visual_search.evaluation.dev_set import EmbeddedDevSet
from visual_search.evaluation.tasks import ImageTask, TaskConfig
from visual_search.serve.calibration import Calibration, fit
from visual_search.serve.query_model import QueryModel
from visual_search.serve.records import IndexedModel
from visual_search.serve.store import Store

CALIBRATED_HITS = 10
WHOLE = (0, 0, 1 << 16, 1 << 16)
"""A box that is clipped to its image."""
Judged = list[tuple[ImageItem, str]]
"""Queries, and the product that each shows."""


def read_judged(path: Path, store: Store) -> Judged:
    """The queries of a `queries.csv` with `product_id`, and those that clicks judged.

    Raises:
        UserError: for a table with a fault, or none of whose products is in the index.
    """
    table = read_queries(path)
    if "product_id" not in table.columns:
        raise UserError(f"{path} has no column 'product_id': it says what each query shows")
    check_table(table[[*BOX_COLUMNS]], path)
    listed = sorted(store.product_ids())
    products = ids_of(table, "product_id", path)
    known, asked = compared(pd.Series(listed, dtype=object), products)
    there = dict(zip(known, listed, strict=True))
    clicks = [(image.item, image.product) for image in store.clicked(photos=True)]
    judged = [*zip(image_items(table, path.parent), map(there.get, asked), strict=True), *clicks]
    kept = [(item, product) for item, product in judged if product is not None]
    if not kept:
        raise UserError(f"no product_id of {path} is in the index, for example {products.iloc[0]}")
    tell(f"{path}: {len(table)} queries, and {len(clicks)} of clicks; "
         f"{len(judged) - len(kept)} show products that the index does not have")  # fmt: skip
    return kept


def export_clicks(store: Store, folder: Path) -> str:
    """Write queries that led to a click, and the index's images, as a retrieval task.

    Returns:
        What was written.

    Raises:
        UserError: where there are none.
    """
    asked = [
        (number, image.path, *(image.box or WHOLE), image.product)
        for number, image in enumerate(store.clicked())
        if image.item.path.is_file()
    ]
    if not asked:
        raise UserError(
            "no query by image has led to a click yet: main_serve keeps images with --log-images"
        )
    shown = [(image.id, image.path, image.product) for image in store.images()]
    columns = ["seller_img_id", "img_path", "product_id"]
    write_csv(folder / "gallery.csv", pd.DataFrame(shown, columns=columns))
    columns = ["user_img_id", "img_path", *BOX_COLUMNS, "product_id"]
    write_csv(folder / "queries.csv", pd.DataFrame(asked, columns=columns))
    task = folder / "clicks.yml"
    place = {"eval_root": str(folder.absolute())}
    words = {"title": "Clicks", "dev_set": place, "metric": "R@1"}
    write_text(task, yaml.safe_dump(words, allow_unicode=True, sort_keys=False))
    return f"{task}: {len(asked)} queries, {len(shown)} images"


def calibrate(
    store: Store, indexed: IndexedModel, model: QueryModel, judged: Judged
) -> Calibration:
    """Ask each query of the whole index and of the index without its product, fit, and store."""
    _, wanted, asked = _embedded(model, judged)
    exact = replace(indexed, approximate=False)
    scores, right = [], []
    for product, vector in zip(wanted, asked, strict=True):
        hits = store.search(exact, vector, CALIBRATED_HITS + 1)
        if len(hits) <= CALIBRATED_HITS:
            raise UserError(f"an index of {len(hits)} products is too small to calibrate on")
        for kept in (hits, [hit for hit in hits if hit.product["id"] != product]):
            scores.append([hit.score for hit in kept[:CALIBRATED_HITS]])
            right.append([hit.product["id"] == product for hit in kept[:CALIBRATED_HITS]])
    absent = np.tile([False, True], len(wanted))
    calibration = fit(np.array(scores), np.array(right), np.repeat(wanted, 2), absent)
    store.keep_calibration(indexed, asdict(calibration))
    return calibration


def _embedded(model: QueryModel, judged: Judged) -> tuple[list[ImageItem], np.ndarray, np.ndarray]:
    """Queries that can be read, the products that they show, and their vectors."""
    items, products = zip(*judged, strict=True)
    vectors = [one.vector for one in model.embed(items)]
    kept = [place for place, vector in enumerate(vectors) if vector is not None]
    return (
        [items[place] for place in kept],
        np.array([products[place] for place in kept], str),
        np.array([vectors[place] for place in kept]),
    )


def compare_with_current(
    store: Store, indexed: IndexedModel, model: QueryModel, judged: Judged
) -> str:
    """The model that answers (A) and another (B) on judged queries, as `main_evaluate compare`."""
    current = next(one for one in store.models() if one.current)
    answering = QueryModel(Path(current.source))
    if answering.fingerprint != current.fingerprint:
        return f"not compared: {current.source} holds another model than the one that answers"
    files = {image.id: image.item for image in store.images()}
    sides = []
    for one, with_model in ((current, answering), (indexed, model)):
        items, wanted, asked = _embedded(with_model, judged)
        images, owners, matrix = store.vectors(one)
        gallery = [files[image] for image in images.tolist()]
        dev_set = DevSet(gallery, items, owners.astype(str), wanted)
        vectors = (torch.from_numpy(matrix), torch.from_numpy(asked))
        task = ImageTask.of("judged", TaskConfig(title="judged queries"), dev_set)
        sides.append(task.score(EmbeddedDevSet(dev_set, *vectors, Path(one.source))))
    compared = [compare(sides[0], sides[1])]
    return (
        f"A: {current.name}, B: {indexed.name}\n\n{markdown(comparison_rows(compared))}\n\n"
        f"{verdict(compared)}"
    )
