"""Filling an index: what is new or changed is embedded, what is gone is removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.progress import progress_bar
from visual_search.data.images import ImageItem, ImageProblem
from visual_search.ranking.embed import refuse_broken_model
from visual_search.serve.query_model import QueryModel, what_is_wrong
from visual_search.serve.records import IndexedImage, IndexedModel, Product
from visual_search.serve.store import Store

IMAGES_AT_ONCE = 1000
"""Of a transaction: what a killed command embeds again at the most."""

PROBES, DEPTH = 100, 100
"""Queries that measure what approximate search loses, and answers of each."""


@dataclass
class Report:
    """What became of a gallery."""

    products: int = 0
    changed: int = 0
    """Products that are new, or of which something changed."""
    removed: int = 0
    embedded: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of images that are left out."""

    def __str__(self) -> str:
        words = (
            f"{self.products} products: {self.changed} new or changed, {self.removed} removed; "
            f"{self.embedded} images embedded"
        )
        if self.problems:
            path, reason = self.problems[0]
            words += f"; {len(self.problems)} images left out, for example {path}: {reason}"
        return words


def register(store: Store, model: QueryModel) -> IndexedModel:
    """The model in an index, made where it is new."""
    return store.add_model(str(model.source), model.fingerprint, model.dimension)


def check_answers(store: Store, indexed: IndexedModel) -> None:
    """
    Raises:
        UserError: where another model answers, whose embeddings a gallery has to have.
    """
    answering = next(one for one in store.models() if one.current)
    if answering.id != indexed.id:
        raise UserError(
            f"{answering.source} answers: bring the gallery up to date with --run "
            f"{answering.source}; or add --switch, and this model answers from now on"
        )


def index_products(
    store: Store, model: QueryModel, products: Sequence[Product], *, sync: bool = False
) -> Report:
    """Bring an index up to a gallery.

    Args:
        store: the index.
        model: the one that answers.
        products: the gallery.
        sync: remove products of the index that are not in the gallery.

    Raises:
        UserError: where another model answers, or the model is broken.
    """
    indexed = register(store, model)
    check_answers(store, indexed)
    report = Report(len(products))
    if sync:
        gone = store.product_ids() - {product.id for product in products}
        report.removed = store.delete(sorted(gone))
    total = sum(len(product.images) for product in products)
    with progress_bar("indexing", "img", total=total) as bar:
        for some in _portions(products):
            if changed := _updated(store, model, indexed, some, report):
                store.put(changed, [indexed.id])
                report.changed += len(changed)
            bar.update(sum(len(product.images) for product in some))
    return report


def _portions(products: Sequence[Product]) -> Iterator[list[Product]]:
    """Products, whole, of about a thousand images."""
    portion: list[Product] = []
    count = 0
    for product in products:
        portion.append(product)
        count += len(product.images)
        if count >= IMAGES_AT_ONCE:
            yield portion
            portion, count = [], 0
    if portion:
        yield portion


def _updated(
    store: Store,
    model: QueryModel,
    indexed: IndexedModel,
    products: Sequence[Product],
    report: Report,
) -> list[Product]:
    """Those that differ from the index, with vectors, or problems, of their new images."""
    known = store.known([product.id for product in products])
    changed: list[tuple[Product, dict[ImageItem, None]]] = []
    for product in products:
        facts, images = known.get(product.id, (None, {}))
        new = {
            image.item: None
            for image in product.images
            if images.get((image.path, image.box)) != image.fingerprint
        }
        if new or facts != replace(product, images=()) or len(images) != len(product.images):
            changed.append((product, new))
    items = list({item: None for _, new in changed for item in new})
    answers = dict(zip(items, embed_gallery(model, items, report), strict=True))

    def finished(image: IndexedImage) -> IndexedImage:
        vector, problem = answers[image.item]
        vectors = {} if vector is None else {indexed.id: vector}
        return replace(image, vectors=vectors, problem=problem)

    return [
        replace(product, images=[finished(im) if im.item in new else im for im in product.images])
        for product, new in changed
    ]


def embed_gallery(
    model: QueryModel, items: Sequence[ImageItem], report: Report
) -> list[tuple[np.ndarray | None, str | None]]:
    """Of each image its vector, or None and why it has none.

    Raises:
        UserError: where the model embeds few of them.
    """
    if not items:
        return []
    found = model.embed(items, gallery=True)
    lost = [
        ImageProblem(str(item.path), str(one.note))
        for item, one in zip(items, found, strict=True)
        if one.vector is None
    ]
    refuse_broken_model(lost, len(items))
    report.embedded += len(items) - len(lost)
    report.problems += [(one.path, what_is_wrong(one.reason)) for one in lost]
    return [(one.vector, what_is_wrong(one.note) if one.vector is None else None) for one in found]


def fill(store: Store, model: QueryModel, report: Report) -> None:
    """Embed every image of the index that lacks this model's embedding; others answer meanwhile."""
    indexed = register(store, model)
    total = store.count_missing(indexed)
    with progress_bar("embedding", "img", total=total, shown=total > 0) as bar:
        while rows := store.missing(indexed, IMAGES_AT_ONCE):
            answers = embed_gallery(model, [item for _, _, item in rows], report)
            pairs = list(zip(rows, answers, strict=True))
            vectors = [(image, of, v) for (image, of, _), (v, _) in pairs if v is not None]
            lost = {image: reason for (image, _, _), (_, reason) in pairs if reason}
            store.add_embeddings(indexed, vectors, lost)
            bar.update(len(rows))


def compared_models(store: Store, runs: Sequence[Path] | None) -> list[str]:
    """The fingerprints of the models of some runs.

    Raises:
        UserError: for a run whose model is not in the index.
    """
    found = []
    for run in runs or ():
        model = QueryModel(run)
        if model.fingerprint not in {one.fingerprint for one in store.models()}:
            raise UserError(
                f"{run} is not in the index: python -m visual_search.main_index --run {run}"
            )
        found.append(model.fingerprint)
    return found


def measured_recall(store: Store, model: IndexedModel, seed: int = 0) -> str:
    """Ask with some of the index's own embeddings, exactly and approximately; in a line.

    They are moved half their length away at random: their own image would always be found.
    """
    rng = np.random.default_rng(seed)
    _, _, matrix = store.vectors(model)
    rows = rng.permutation(len(matrix))[:PROBES]
    moved = rng.standard_normal((len(rows), model.dimension)).astype(np.float32)
    moved *= 0.5 / np.linalg.norm(moved, axis=1, keepdims=True)
    probes = matrix[rows] + moved
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    shares = []
    for probe in probes:
        exact, found = (
            {hit.image for hit in store.search(model, probe, DEPTH, by_product=False, exact=exact)}
            for exact in (True, False)
        )
        shares.append(len(exact & found) / len(exact))
    return (
        f"approximate search finds {np.mean(shares):.1%} of the exact first {DEPTH}, "
        f"{np.min(shares):.1%} of the worst of {len(rows)} queries"
    )
