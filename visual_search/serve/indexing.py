"""Filling an index: what is new or changed is embedded, what is gone is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.progress import progress_bar
from visual_search.data.images import ImageItem, ImageProblem
from visual_search.ranking.embed import NOT_FINITE, refuse_broken_model
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
    problems: list[str] = field(default_factory=list)
    """Path and reason of images that are left out."""

    def __str__(self) -> str:
        words = f"{self.embedded} images embedded"
        if self.products:
            changes = f"{self.changed} new or changed, {self.removed} removed"
            words = f"{self.products} products: {changes}; {words}"
        lost = f"; {len(self.problems)} images left out, for example "
        return words + lost + self.problems[0] if self.problems else words


class Indexer:
    """Embeds what an index lacks by one model."""

    def __init__(self, store: Store, model: QueryModel) -> None:
        self.store, self.model, self.report = store, model, Report()
        self.indexed = store.add_model(str(model.source), model.fingerprint, model.dimension)

    def check_answers(self) -> None:
        """
        Raises:
            UserError: where another model answers, whose embeddings a gallery has to have.
        """
        answering = next(one for one in self.store.models() if one.current)
        if answering.id != self.indexed.id:
            raise UserError(
                f"{answering.source} answers: bring the gallery up to date with --run "
                f"{answering.source}; or add --switch, and this model answers from now on"
            )

    def index(self, products: Sequence[Product], *, sync: bool = False) -> None:
        """Bring the index up to a gallery; `sync`: remove products that are not in it.

        Raises:
            UserError: where another model answers, or the model is broken.
        """
        self.check_answers()
        self.report.products = len(products)
        if sync:
            gone = self.store.product_ids() - {product.id for product in products}
            self.report.removed = self.store.delete(gone)
        ends = np.cumsum([0, *(len(product.images) for product in products)])
        with progress_bar("indexing", "img", total=int(ends[-1])) as bar:
            pairs = zip(products, ends[1:] // IMAGES_AT_ONCE, strict=True)
            for _, portion in groupby(pairs, lambda pair: pair[1]):
                some = [product for product, _ in portion]
                if changed := self._changed(some):
                    self.store.put(changed, [self.indexed.id])
                    self.report.changed += len(changed)
                bar.update(sum(len(product.images) for product in some))

    def _changed(self, products: Sequence[Product]) -> list[Product]:
        """Those that differ from the index, with vectors, or problems, of their new images.

        Files that could not be read are tried again: a drive may be back, a permission given.
        """
        known = self.store.products([product.id for product in products])
        there = {
            name: {file: image for file, image in product.files().items() if not _unread(image)}
            for name, product in known.items()
        }
        new = [
            image
            for product in products
            for file, image in product.files().items()
            if file not in there.get(product.id, {})
        ]
        done = {image.item: image for image in self._embedded(new)}
        changed: list[Product] = []
        for product in products:
            before, same = known.get(product.id), there.get(product.id, {})
            pairs = product.files().items()
            product.images = [same.get(file) or done[image.item] for file, image in pairs]
            if not before or before.facts() != product.facts() or _state(before) != _state(product):
                changed.append(product)
        return changed

    def fill(self) -> None:
        """Embed every image that lacks this model's embedding; others answer meanwhile."""
        while images := self.store.missing(self.indexed):
            with progress_bar("embedding", "img", total=len(images)) as bar:
                for first in range(0, len(images), IMAGES_AT_ONCE):
                    some = images[first : first + IMAGES_AT_ONCE]
                    self.store.add_embeddings(self._embedded(some))
                    bar.update(len(some))

    def _embedded(self, images: Sequence[IndexedImage]) -> list[IndexedImage]:
        """The same images with their vectors, or with what is wrong with them.

        Raises:
            UserError: where the model embeds few of them.
        """
        items = list(dict.fromkeys(image.item for image in images))
        if not items:
            return []
        found = dict(zip(items, self.model.embed(items, gallery=True), strict=True))
        notes = [ImageProblem(str(item.path), str(one.note)) for item, one in found.items()]
        refuse_broken_model(notes, len(items))
        vectors = {item: one.vector for item, one in found.items() if one.vector is not None}
        lost = {item: one.problem for item, one in found.items() if item not in vectors}
        self.report.embedded += len(vectors)
        self.report.problems += [f"{item.path}: {problem}" for item, problem in lost.items()]
        return [
            replace(image, problem=lost[image.item])
            if image.item in lost
            else replace(image, vectors={self.indexed.id: vectors[image.item]})
            for image in images
        ]


def _unread(image: IndexedImage) -> bool:
    return image.problem is not None and not NOT_FINITE.startswith(image.problem)


def _state(product: Product) -> dict[tuple[ImageItem, str], str | None]:
    """The images of a product, and what is wrong with each."""
    return {file: image.problem for file, image in product.files().items()}


def measured_recall(store: Store, model: IndexedModel, seed: int = 0) -> str:
    """Ask with some of the index's own embeddings, exactly and approximately; in a line.

    They are moved half their length away at random: their own image would always be found.
    """
    rng = np.random.default_rng(seed)
    _, _, matrix = store.vectors(model)
    probes = rng.permutation(matrix)[:PROBES]
    moved = rng.standard_normal(probes.shape).astype(np.float32)
    probes = probes + 0.5 * moved / np.linalg.norm(moved, axis=1, keepdims=True)
    shares = []
    for probe in probes / np.linalg.norm(probes, axis=1, keepdims=True):
        exact, found = (
            {hit.image for hit in store.search(way, probe, DEPTH, by_product=False)}
            for way in (replace(model, approximate=False), model)
        )
        shares.append(len(exact & found) / len(exact))
    return (
        f"approximate search finds {np.mean(shares):.1%} of the exact first {DEPTH}, "
        f"{np.min(shares):.1%} of the worst of {len(shares)} queries"
    )
