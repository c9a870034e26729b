"""Queries whose product is known, from a table and from clicks: calibration, and comparisons."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from visual_search.common.errors import UserError
from visual_search.common.files import write_csv, write_text
from visual_search.data.dev_sets import DevSet
from visual_search.data.images import ImageItem
from visual_search.data.schema import BOX_COLUMNS, check_boxes
from visual_search.data.tables import compared, ids_of, image_items, read_queries, tell
from visual_search.evaluation.compare import compare, comparison_rows, verdict
from visual_search.evaluation.dev_set import EmbeddedDevSet
from visual_search.evaluation.report import markdown
from visual_search.evaluation.tasks import ImageTask, TaskConfig
from visual_search.ranking.search import top_k
from visual_search.serve.calibration import Calibration, fit
from visual_search.serve.query_log import clicked
from visual_search.serve.query_model import QueryModel
from visual_search.serve.records import IndexedModel
from visual_search.serve.store import Store, image_item

CALIBRATED_HITS = 10
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
    check_boxes(table, path)
    listed = sorted(store.product_ids())
    products = ids_of(table, "product_id", path)
    known, asked = compared(pd.Series(listed, dtype=object), products)
    there = dict(zip(known, listed, strict=True))
    judged = [
        (item, there.get(product))
        for item, product in zip(image_items(table, path.parent), asked, strict=True)
    ]
    judged += clicked_queries(store)
    kept = [(item, product) for item, product in judged if product is not None]
    if not kept:
        raise UserError(f"no product_id of {path} is in the index, for example {products.iloc[0]}")
    tell(f"{path}: {len(table)} queries, and {len(judged) - len(table)} of clicks; "
         f"{len(judged) - len(kept)} show products that the index does not have")  # fmt: skip
    return kept


def clicked_queries(store: Store) -> Judged:
    """Logged queries by image, with the product that was clicked last."""
    return [(image_item(row), row["product"]) for row in clicked(store.database)]


def export_clicks(store: Store, folder: Path) -> str:
    """Write queries that led to a click, and the index's images, as a retrieval task.

    Returns:
        What was written, and the command that reads it.

    Raises:
        UserError: where there are none.
    """
    judged = [(item, product) for item, product in clicked_queries(store) if item.path.is_file()]
    if not judged:
        raise UserError(
            "no query by image has led to a click yet: main_serve keeps images with --log-images"
        )
    gallery = store.images()
    shown = [(image, item.path, product) for image, product, item in gallery]
    columns = ["seller_img_id", "img_path", "product_id"]
    write_csv(folder / "gallery.csv", pd.DataFrame(shown, columns=columns))
    whole = (0, 0, 1 << 16, 1 << 16)  # is clipped to the image
    asked = [
        (number, item.path, *(item.box or whole), product)
        for number, (item, product) in enumerate(judged)
    ]
    columns = ["user_img_id", "img_path", *BOX_COLUMNS, "product_id"]
    write_csv(folder / "queries.csv", pd.DataFrame(asked, columns=columns))
    task = folder / "clicks.yml"
    write_text(task, f"title: Clicks\ndev_set: {{eval_root: {folder.absolute()}}}\nmetric: R@1\n")
    return (
        f"{task}: {len(judged)} queries, {len(gallery)} images\nnext: python -m "
        f"visual_search.main_evaluate compare RUN_A RUN_B --tasks {task}"
    )


def calibrate(
    store: Store, indexed: IndexedModel, model: QueryModel, judged: Judged
) -> Calibration:
    """Ask each query of the whole index and of the index without its product, fit, and store."""
    judged, asked = _embedded(model, judged)
    _, owners, matrix = store.vectors(indexed)
    wanted = np.array([product for _, product in judged], object)
    found, rows = top_k(torch.from_numpy(asked), torch.from_numpy(matrix), len(matrix))
    scores: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for query, (cosines, order) in enumerate(zip(found.numpy(), owners[rows.numpy()], strict=True)):
        _, first = np.unique(order.astype(str), return_index=True)
        places = np.sort(first)  # of the best image of each product
        for kept in (places, places[order[places] != wanted[query]]):
            best = kept[:CALIBRATED_HITS]
            if len(best) < CALIBRATED_HITS:
                raise UserError(f"an index of {len(places)} products is too small to calibrate on")
            scores.append(cosines[best])
            right.append(order[best] == wanted[query])
    absent = np.tile([False, True], len(wanted))
    calibration = fit(np.array(scores), np.array(right), np.repeat(wanted, 2), absent)
    store.keep_calibration(indexed, asdict(calibration))
    return calibration


def _embedded(model: QueryModel, judged: Judged) -> tuple[Judged, np.ndarray]:
    found = model.embed([item for item, _ in judged])
    kept = [
        (pair, one.vector)
        for pair, one in zip(judged, found, strict=True)
        if one.vector is not None
    ]
    return [pair for pair, _ in kept], np.array([vector for _, vector in kept])


def compare_with_current(
    store: Store, indexed: IndexedModel, model: QueryModel, judged: Judged
) -> str:
    """The model that answers (A) and another (B) on judged queries, as `main_evaluate compare`."""
    current = next(one for one in store.models() if one.current)
    answering = QueryModel(Path(current.source))
    if answering.fingerprint != current.fingerprint:
        return f"not compared: {current.source} holds another model than the one that answers"
    sides = []
    for one, with_model in ((current, answering), (indexed, model)):
        kept, asked = _embedded(with_model, judged)
        images, owners, matrix = store.vectors(one)
        paths = {image: item for image, _, item in store.images()}
        dev_set = DevSet(
            [paths[image] for image in images.tolist()],
            [item for item, _ in kept],
            owners.astype(str),
            np.array([product for _, product in kept], str),
        )
        task = ImageTask.of("judged", TaskConfig(title="judged queries"), dev_set)
        embedded = EmbeddedDevSet(
            dev_set, torch.from_numpy(matrix), torch.from_numpy(asked), Path(one.source)
        )
        sides.append(task.score(embedded))
    before, after = sides
    compared = [compare(before, after)]
    return (
        f"A: {current.name}, B: {indexed.name}\n\n{markdown(comparison_rows(compared))}\n\n"
        f"{verdict(compared)}"
    )
