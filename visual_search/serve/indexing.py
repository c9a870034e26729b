"""Filling an index: what is new or changed is embedded, what is gone is removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.progress import progress_bar
from visual_search.data.images import ImageItem
from visual_search.ranking.embed import refuse_broken_model
from visual_search.ranking.rank import UNUSED
from visual_search.serve.query_model import QueryModel
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
            changed = _changed(store, some)
            if changed:
                finished = _embedded(model, indexed, changed, report)
                store.put(finished, [indexed.id])
                report.changed += len(finished)
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


def _changed(store: Store, products: Sequence[Product]) -> list[tuple[Product, list[bool]]]:
    """Those that differ from the index, and which of their images do."""
    known = store.known([product.id for product in products])
    changed = []
    for product in products:
        facts, images = known.get(product.id, (None, {}))
        new = [images.get((im.path, im.box)) != im.fingerprint for im in product.images]
        same = facts == replace(product, images=()) and len(images) == len(product.images)
        if any(new) or not same:
            changed.append((product, new))
    return changed


def _embedded(
    model: QueryModel,
    indexed: IndexedModel,
    products: Sequence[tuple[Product, list[bool]]],
    report: Report,
) -> list[Product]:
    """The products with vectors, or problems, of those of their images that are new."""
    items = [
        ImageItem(Path(image.path), image.box)
        for product, new in products
        for image, is_new in zip(product.images, new, strict=True)
        if is_new
    ]
    answers = iter(embed_gallery(model, items, report))

    def finished(image: IndexedImage, is_new: bool) -> IndexedImage:
        if not is_new:
            return image
        vector, problem = next(answers)
        return replace(
            image, vectors={} if vector is None else {indexed.id: vector}, problem=problem
        )

    return [
        replace(product, images=[finished(*pair) for pair in zip(product.images, new, strict=True)])
        for product, new in products
    ]


def embed_gallery(
    model: QueryModel, items: Sequence[ImageItem], report: Report | None = None
) -> list[tuple[np.ndarray | None, str | None]]:
    """Of each image its vector, or None and why it has none.

    Raises:
        UserError: where the model embeds few of them.
    """
    if not items:
        return []
    found = model.embed(items, gallery=True)
    refuse_broken_model(found.problems, len(items))
    lost = {one.path: one.reason for one in found.problems if one.reason.endswith(UNUSED)}
    answers: list[tuple[np.ndarray | None, str | None]] = []
    for item, vector in zip(items, found.matrix.numpy(), strict=True):
        reason = lost.get(str(item.path))
        answers.append((vector, None) if reason is None else (None, reason.rsplit(";", 1)[0]))
    if report is not None:
        report.embedded += len(items) - len(lost)
        report.problems += lost.items()
    return answers


def fill(store: Store, model: QueryModel, report: Report) -> IndexedModel:
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
    return indexed


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
