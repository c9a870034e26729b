"""What the service does with a request, whatever it came by: search, change, look up."""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

from visual_search.common.errors import UserError
from visual_search.common.files import write_bytes
from visual_search.data.image_files import UnreadableImage, open_image
from visual_search.data.images import Box, ImageItem, read_region
from visual_search.serve.calibration import Calibration
from visual_search.serve.gallery import ProductFacts, file_state
from visual_search.serve.guard import Refusal
from visual_search.serve.query_log import log_query
from visual_search.serve.query_model import Kind, ModelThread, QueryModel
from visual_search.serve.records import Filters, IndexedImage, IndexedModel, StaleModelError
from visual_search.serve.store import Store

MAX_PIXELS = 100_000_000
SECONDS = 10.0
"""For a model to answer."""
WATCH_SECONDS = 2.0
"""Between two looks at which model answers."""
log = logging.getLogger("visual_search.serve")


@dataclass(frozen=True)
class Asked:
    """A query: an image with its box, a text, both, or an indexed image."""

    image: bytes | None = None
    box: Box | None = None
    text: str | None = None
    weight: float = 0.5
    """Of the text, where there is an image too, 0..1."""
    like: int | None = None
    filters: Filters = field(default_factory=Filters)
    count: int = 20
    by_product: bool = True
    model: int | None = None
    """None: the one that answers."""


class Service:
    """An index, and the models that answer from it."""

    def __init__(
        self,
        store: Store,
        uploads: Path,
        *,
        compared: Sequence[str] = (),
        log_images: bool = False,
    ) -> None:
        """
        Args:
            store: the index.
            uploads: folder of images that come by HTTP.
            compared: fingerprints of models that answer beside the current one.
            log_images: keep the images of queries.

        Raises:
            UserError: where there is no model in the index, or one cannot be loaded.
        """
        self.store, self.uploads, self.log_images = store, uploads, log_images
        self.compared = tuple(compared)
        self._threads: dict[int, ModelThread] = {}
        self.models: dict[int, IndexedModel] = {}
        self.refresh()
        if not self.models:
            raise UserError("the index is empty: fill it with visual_search.main_index")
        tenths = np.linspace(0.1, 1.0, 10).tolist()
        self._stage = Histogram("stage_seconds", "Parts of a search", ["stage"], registry=None)
        self._top = Histogram("top_score", "Cosine of the first hit", buckets=tenths, registry=None)
        self._queries = Counter("queries", "Searches by kind", ["kind"], registry=None)
        self._empty = Counter("empty_answers", "Searches without a hit", registry=None)
        self._absent = Counter("absent_answers", "Product is likely not there", registry=None)
        waiting = Gauge("waiting_queries", "That wait for a model", registry=None)
        waiting.set_function(lambda: sum(thread.waiting for thread in self._threads.values()))
        self.metrics = (self._stage, self._top, self._queries, self._empty, self._absent, waiting)
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    @property
    def current(self) -> IndexedModel:
        """The model that answers: of those that are loaded, the index's own."""
        return next(model for model in self.models.values() if model.current)

    def refresh(self) -> None:
        """Load the models that the index names by now; the ones before answer meanwhile.

        Raises:
            UserError: when one is not where the index was filled from, or is another by now.
        """
        self.store.database.look_up_role()
        found = {
            model.id: model
            for model in self.store.models()
            if model.current or model.fingerprint in self.compared
        }
        for number, indexed in found.items():
            if number not in self._threads:
                model = QueryModel(Path(indexed.source))
                if model.fingerprint != indexed.fingerprint:
                    raise UserError(
                        f"{indexed.source} is another model than the index was filled with: run "
                        f"visual_search.main_index --run {indexed.source}, with --switch"
                    )
                self._threads[number] = ModelThread(model)
        self.models = found
        for number in set(self._threads) - set(found):
            self._threads.pop(number).stop()

    def _watch(self) -> None:
        while not self._stopped.wait(WATCH_SECONDS):
            try:
                self.refresh()
            except Exception as error:  # the database may be away; what is loaded answers on
                log.warning("the models cannot be looked up: %s", error)

    def close(self) -> None:
        """Stop the threads."""
        self._stopped.set()
        for thread in self._threads.values():
            thread.stop()

    def knows_texts(self, model: IndexedModel) -> bool:
        """Whether a model can be asked in words."""
        return self._threads[model.id].model.encoder is not None

    # Searching

    def search(self, asked: Asked) -> dict[str, Any]:
        """Hits, how sure they are, and the number by which a click names the query."""
        model = self.current if asked.model is None else self.models.get(asked.model)
        if model is None:
            raise Refusal(404, "there is no such model")
        with self._stage.labels("embed").time():
            vector, note, kept = self._vector(model, asked)
        if not np.isfinite(vector).all() or not vector.any():
            raise Refusal(422, "the model makes nothing of this query: try another image")
        with self._stage.labels("search").time():
            # A second product is needed to know how far the first is ahead.
            count = max(asked.count, 2)
            hits = self.store.search(
                model, vector, count, asked.filters, by_product=asked.by_product
            )
        calibration = None
        if model.calibration and not asked.text:
            calibration = Calibration(**model.calibration)
        probability = None
        if calibration and hits:
            best: dict[str, float] = {}
            for hit in hits:
                best.setdefault(hit.product.id, hit.score)
            probability = calibration.probability(list(best.values())[:2])
        may_not_have = probability is not None and probability < 0.5
        kinds = {"like": asked.like, "image": asked.image, "text": asked.text}
        self._queries.labels("+".join(k for k, v in kinds.items() if v is not None)).inc()
        self._absent.inc(may_not_have)
        if hits:
            self._top.observe(hits[0].score)
        else:
            self._empty.inc()
        with self._stage.labels("log").time():
            query = None
            if not self.store.database.read_only:
                query = log_query(
                    self.store.database,
                    model.id,
                    filters={k: v for k, v in asdict(asked.filters).items() if v},
                    text=asked.text,
                    image=str(kept) if kept else None,
                    box=list(asked.box) if asked.box else None,
                    liked=asked.like,
                    score=hits[0].score if hits else None,
                    probability=probability,
                )
        return {
            "query": query,
            "model": model.name,
            "probability": probability,
            "may_not_have": may_not_have,
            "note": note,
            "hits": [
                {
                    "image": hit.image,
                    "score": round(hit.score, 4),
                    "sure": calibration.word(hit.score) if calibration else None,
                    "product": hit.product.facts(),
                }
                for hit in hits[: asked.count]
            ],
        }

    def _vector(self, model: IndexedModel, asked: Asked) -> tuple[np.ndarray, str | None, Any]:
        """The query's vector, what was odd about it, and the path of its image where it is kept."""
        if asked.like is not None:
            vector = self.store.vector_of(model, asked.like)
            if vector is None:
                raise Refusal(404, "there is no such image in the index")
            return vector, None, None
        parts, note, path = [], None, None
        if asked.image is not None:
            with self._file_of(asked.image) as file:
                item = ImageItem(file, asked.box)
                vector, note = self._ask(model, "image", item)
                parts.append((1 - asked.weight if asked.text else 1.0, vector))
                path = file if self.log_images else None
        if asked.text:
            if not self.knows_texts(model):
                raise Refusal(422, "this model knows no texts: ask with an image")
            vector, _ = self._ask(model, "text", asked.text)
            parts.append((asked.weight if asked.image is not None else 1.0, vector))
        if not parts:
            raise Refusal(422, "send an image, a text, or the id of an indexed image (like)")
        mixed = np.sum([weight * vector for weight, vector in parts], axis=0)
        return mixed / max(float(np.linalg.norm(mixed)), 1e-12), note, path

    def _ask(self, model: IndexedModel, kind: Kind, query: Any) -> Any:
        thread = self._threads.get(model.id)
        if thread is None:  # dropped since the request came
            raise Refusal(503, "the index is changing its model: try again", 5)
        return _answer(thread.submit(kind, query))

    @contextmanager
    def _file_of(self, image: bytes) -> Iterator[Path]:
        """The image as a file, for the reader that the ranker has; kept where queries are."""
        ending = check_image(image)
        if self.log_images:
            yield self._kept(image, ending, self.uploads / "queries")
            return
        with tempfile.NamedTemporaryFile(suffix=ending) as handle:
            handle.write(image)
            handle.flush()
            yield Path(handle.name)

    def _kept(self, image: bytes, ending: str, folder: Path) -> Path:
        path = folder / f"{hashlib.sha256(image).hexdigest()[:40]}{ending}"
        if not path.exists():
            write_bytes(path, image)
        return path

    def propose_box(self, image: bytes) -> Box | None:
        """Where the product of an image is likely to be."""
        with self._file_of(image) as file:
            box: Box | None = self._ask(self.current, "box", ImageItem(file))
        return box

    # Products

    def put_product(
        self, product: str, facts: ProductFacts, images: Sequence[tuple[bytes, Box | None]]
    ) -> None:
        """Add a product or replace it; without images only what is told of it changes.

        What is written is whole and durable when this returns.
        """
        if not images:
            if not self.store.set_facts(facts.product(product)):
                raise Refusal(422, "a new product needs an image")
            return
        models = dict(self._threads)
        folder = self.uploads / hashlib.sha256(product.encode()).hexdigest()[:16]
        kept = []
        for image, box in images:
            path = self._kept(image, check_image(image), folder)
            item = ImageItem(path, box)
            asked = {number: thread.submit("gallery", item) for number, thread in models.items()}
            kept.append((item, asked))
        indexed = [
            IndexedImage(
                str(item.path),
                item.box,
                file_state(item.path),
                {number: _answer(future).vector for number, future in asked.items()},
            )
            for item, asked in kept
        ]
        try:
            self.store.put([facts.product(product, indexed)], list(models))
        except StaleModelError:
            raise Refusal(503, "the index is changing its model: try again", 5) from None

    def thumbnail(self, image: int, size: int) -> bytes | None:
        """An indexed image as JPEG, no side longer than `size` pixels; None where there is none."""
        item = self.store.image(image)
        if item is None:
            return None
        try:
            shown = read_region(ImageItem(item.path), size).image
        except UnreadableImage:
            return None
        shown.thumbnail((size, size))
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def about(self) -> dict[str, Any]:
        """What the page has to know: models, filters, how much there is."""
        current = self.current
        by_print = {one.fingerprint: one for one in self.models.values()}
        shown = [by_print[name] for name in self.compared if name in by_print] or [current]
        return {
            **self.store.facets(),
            "models": [{"id": one.id, "name": one.name} for one in shown],
            "texts": any(self.knows_texts(one) for one in shown),
            "calibrated": current.calibration is not None,
        }


def _answer(future: Future[Any]) -> Any:
    try:
        return future.result(SECONDS)
    except TimeoutError:
        future.cancel()
        raise Refusal(503, "the model is too busy: try again", 2) from None


def check_image(image: bytes) -> str:
    """The ending of an image file by its content.

    Raises:
        Refusal: for what is no image, or has too many pixels.
    """
    try:
        with open_image(image) as opened:
            width, height = opened.size
            kind = str(opened.format).lower()
    except UnreadableImage as error:
        raise Refusal(422, f"the image cannot be used: {error}") from error
    if width * height > MAX_PIXELS:
        raise Refusal(422, f"the image has {width} x {height} pixels: 100 million are the most")
    return "." + {"jpeg": "jpg", "mpo": "jpg"}.get(kind, kind)
