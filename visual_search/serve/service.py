"""What the service does with a request, whatever it came by: search, change, look up."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import math
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import UploadFile
from prometheus_client import Counter, Gauge, Histogram
from pydantic import AfterValidator, Field

from visual_search.common.errors import UserError
from visual_search.common.files import write_bytes
from visual_search.data.image_files import UnreadableImage, open_image
from visual_search.data.images import Box, ImageItem, read_region
from visual_search.data.tables import as_box
from visual_search.serve.guard import Refusal
from visual_search.serve.query_model import Kind, ModelThread, QueryModel, answer_of
from visual_search.serve.records import Facts, Filters, IndexedImage, IndexedModel, Product, Text
from visual_search.serve.store import Store

MAX_PIXELS = 100_000_000
THUMBNAILS = 1000
"""That are kept, of some 15 kB each."""
WATCH_SECONDS = 2.0
"""Between two looks at which model answers."""
BOX_WORDS = "x,y,width,height in pixels of the stored image; without it the whole image"
STAGE = Histogram("stage_seconds", "Parts of a search", ["stage"])
TOP = Histogram("top_score", "Cosine of the first hit", buckets=np.linspace(0.1, 1, 10).tolist())
QUERIES = Counter("queries", "Searches by kind", ["kind"])
EMPTY = Counter("empty_answers", "Searches without a hit")
ABSENT = Counter("absent_answers", "Product is likely not there")
WAITING = Gauge("waiting_queries", "That wait for a model")
log = logging.getLogger("visual_search.serve")


def _is_box(text: str | None) -> str | None:
    if text and not re.fullmatch(r"(-?[0-9]{1,6},){2}[1-9][0-9]{0,5},[1-9][0-9]{0,5}", text):
        raise ValueError(f"write {BOX_WORDS}")
    return text


def _words(text: str | None) -> str | None:
    return (text and text.strip()) or None


class Asked(Filters, arbitrary_types_allowed=True):
    """A query: an image with its box, a text, both, or an indexed image."""

    image: UploadFile | None = Field(default=None, description="JPEG, PNG, WebP, …")
    box: Annotated[str | None, AfterValidator(_is_box)] = Field(default=None, description=BOX_WORDS)
    text: Annotated[str | None, Field(max_length=500), AfterValidator(_words), Text] = None
    weight: float = Field(default=0.5, ge=0, le=1, description="of the text beside an image")
    like: int | None = Field(
        default=None, ge=0, lt=1 << 63, description="number of an indexed image"
    )
    k: int = Field(default=20, ge=1, le=100, description="hits at the most")
    per: Literal["product", "image"] = "product"
    model: int | None = Field(
        default=None, ge=0, lt=1 << 31, description="another than that answers"
    )

    def region(self) -> Box | None:
        """The box."""
        return as_box(list(map(int, self.box.split(",")))) if self.box else None


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
        self._facets, self._counted = dict[str, Any](), -math.inf
        self._threads: dict[int, ModelThread] = {}
        self.models: dict[int, IndexedModel] = {}
        self.refresh()
        if not self.models:
            raise UserError("the index is empty: fill it with visual_search.main_index")
        WAITING.set_function(lambda: sum(one.waiting.qsize() for one in self._threads.values()))
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
        self.store.look_up_role()
        found = {
            model.id: model
            for model in self.store.models()
            if model.current or model.fingerprint in self.compared
        }
        for number in set(found) - set(self._threads):
            source = found[number].source
            model = QueryModel(Path(source))
            if model.fingerprint != found[number].fingerprint:
                raise UserError(
                    f"{source} is another model than the index was filled with: run "
                    f"visual_search.main_index --run {source}, with --switch"
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

    # Searching

    def search(self, asked: Asked) -> dict[str, Any]:
        """Hits, how sure they are, and the number by which a click names the query."""
        model = self.current if asked.model is None else self.models.get(asked.model)
        if model is None:
            raise Refusal(404, "there is no such model")
        with STAGE.labels("embed").time():
            vector, note, kept = self._vector(model, asked)
        if not np.isfinite(vector).all() or not vector.any():
            raise Refusal(422, "the model makes nothing of this query: try another image")
        with STAGE.labels("search").time():
            # A second product is needed to know how far the first is ahead.
            count, by_product = max(asked.k, 2), asked.per == "product"
            hits = self.store.search(model, vector, count, asked, by_product=by_product)
            calibration = model.calibration if asked.text is None else None
            products = hits
            if calibration and not by_product:  # all of them may be of one
                products = self.store.search(model, vector, 2, asked)
        first = [hit.score for hit in products[:2]]
        probability = calibration.probability(first) if calibration and hits else None
        kinds = ("like", "image", "text")
        QUERIES.labels("+".join(kind for kind in kinds if getattr(asked, kind) is not None)).inc()
        may_not_have = probability is not None and probability < 0.5
        ABSENT.inc(may_not_have)
        EMPTY.inc(not hits)
        for hit in hits[:1]:
            TOP.observe(hit.score)
        query, box = None, asked.region()
        if not self.store.read_only:
            with STAGE.labels("log").time():
                query = self.store.log_query(
                    model.id,
                    filters=asked.given(),
                    text=asked.text,
                    image=kept,
                    box=list(box) if box else None,
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
                    "product": hit.product,
                }
                for hit in hits[: asked.k]
            ],
        }

    def _vector(self, model: IndexedModel, asked: Asked) -> tuple[np.ndarray, Any, str | None]:
        """The query's vector, what was odd about it, and the path of its image where it is kept."""
        if asked.like is not None:
            if asked.image or asked.text or asked.box:
                raise Refusal(422, "like goes without image, box and text: send one or the other")
            vector = self.store.vector_of(model, asked.like)
            if vector is None:
                raise Refusal(404, "there is no such image in the index")
            return vector, None, None
        parts, note, kept = [], None, None
        if asked.image is not None:
            with self._file_of(asked.image.file.read()) as file:
                vector, note = self._ask(model, "image", ImageItem(file, asked.region()))
                kept = str(file) if self.log_images else None
            parts.append((1 - asked.weight if asked.text else 1.0, vector))
        if asked.text:
            vector, _ = self._ask(model, "text", asked.text)
            parts.append((asked.weight if parts else 1.0, vector))
        if not parts:
            raise Refusal(422, "send an image, a text, or the id of an indexed image (like)")
        mixed = np.sum([weight * vector for weight, vector in parts], axis=0)
        return mixed / max(float(np.linalg.norm(mixed)), 1e-12), note, kept

    def _ask(self, model: IndexedModel, kind: Kind, query: Any) -> Any:
        thread = self._threads.get(model.id)
        if thread is None:  # dropped since the request came
            raise Refusal(503, "the index is changing its model: try again", 5)
        return answer_of(thread.submit(kind, query))

    @contextmanager
    def _file_of(self, image: bytes) -> Iterator[Path]:
        """The image as a file, for the reader that the ranker has; kept where queries are."""
        if self.log_images:
            yield _keep(image, self.uploads / "queries")
            return
        with tempfile.NamedTemporaryFile(suffix=ending_of(image)) as handle:
            handle.write(image)
            handle.flush()
            yield Path(handle.name)

    def propose_box(self, image: bytes) -> Box | None:
        """Where the product of an image is likely to be."""
        with self._file_of(image) as file:
            box: Box | None = self._ask(self.current, "box", ImageItem(file))
        return box

    # Products

    def put_product(
        self, product: str, facts: Facts, images: Sequence[tuple[bytes, Box | None]]
    ) -> None:
        """Add a product or replace it; without images only what is told of it changes.

        What is written is whole and durable when this returns.
        """
        told = Product(id=product, **facts.model_dump())
        if not images:
            if not self.store.set_facts(told):
                raise Refusal(422, "a new product needs an image")
            return
        models = dict(self._threads)
        folder = self.uploads / hashlib.sha256(product.encode()).hexdigest()[:16]
        items = [ImageItem(_keep(image, folder), box) for image, box in images]
        asked = [
            {number: thread.submit("gallery", item) for number, thread in models.items()}
            for item in items
        ]
        for item, futures in zip(items, asked, strict=True):
            vectors = {number: answer_of(future).vector for number, future in futures.items()}
            told.images.append(IndexedImage.of(item, vectors))
        self.store.put([told], list(models))

    def thumbnail(self, image: int, size: int) -> bytes | None:
        """An indexed image as JPEG, no side longer than `size` pixels; None where there is none."""
        for found in self.store.images(image):
            try:
                return _thumbnail(Path(found.path), found.fingerprint, size)
            except UnreadableImage:
                break
        return None

    def about(self) -> dict[str, Any]:
        """What the page has to know: models, filters, how much there is."""
        if time.monotonic() - self._counted > WATCH_SECONDS:  # of a large index it takes a while
            self._facets, self._counted = self.store.facets(), time.monotonic()
        by_print = {one.fingerprint: one for one in self.models.values()}
        shown = [by_print[name] for name in self.compared if name in by_print] or [self.current]
        return {
            **self._facets,
            "models": [{"id": one.id, "name": one.name} for one in shown],
            "texts": any(self._threads[one.id].model.encoder is not None for one in shown),
        }


@functools.lru_cache(THUMBNAILS)
def _thumbnail(path: Path, fingerprint: str, size: int) -> bytes:
    """Of a file as it was when it was indexed, which its fingerprint says."""
    shown = read_region(ImageItem(path), size)
    shown.thumbnail((size, size))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _keep(image: bytes, folder: Path) -> Path:
    path = folder / f"{hashlib.sha256(image).hexdigest()[:40]}{ending_of(image)}"
    if not path.exists():
        write_bytes(path, image)
    return path


def ending_of(image: bytes) -> str:
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
