"""A trained model as the service has it: images and texts to vectors, and where the product is."""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.config import EmbedSettings
from visual_search.data.image_files import stored_size
from visual_search.data.images import PIXELS_VERSION, Box, ImageItem, load_pixels
from visual_search.model.checkpoint import fingerprint, knows_texts, load_checkpoint
from visual_search.model.clip_folder import is_clip_folder
from visual_search.ranking.embed import default_device, embed_images
from visual_search.ranking.export import load_model
from visual_search.ranking.inference_plan import InferencePlan, plan_inference
from visual_search.ranking.rank import UNUSED, trimmed
from visual_search.serve.guard import Refusal
from visual_search.text.first_ru_clip import is_first_ru_clip

BATCH = 16
"""Waiting queries that are embedded together at the most."""
WAITING = 64
"""Queries that may wait."""
SECONDS = 10.0
"""For a model to answer."""
BOX_LEVEL, BOX_SIDE = 0.5, 64
"""A place belongs to the product from this share of the highest activation on; the map is
enlarged to so many places a side first."""


class Embedded(NamedTuple):
    """An image or a text as the model sees it."""

    vector: np.ndarray | None
    """`(dimension,)`, float32, of length 1; None where nothing of it could be used."""
    note: str | None
    """What was wrong."""

    @property
    def problem(self) -> str | None:
        """Why there is no vector, without what a ranking uses in its place."""
        return None if self.vector is not None else str(self.note).rsplit(";", 1)[0]


class QueryModel:
    """A model, ready to embed the gallery's images, and queries as the ranker does."""

    def __init__(self, source: Path) -> None:
        """
        Args:
            source: a run folder, a checkpoint, an export's folder, or a CLIP of others as
                :func:`visual_search.text.search.load_text_model` takes it.

        Raises:
            UserError: when there is no model, or it is damaged.
        """
        self.source = source.absolute() if source.exists() else source
        self.device = default_device()
        self.encoder: Any = None
        """Of texts, where the model knows them."""
        self.embedder: Any
        if _is_clip(source) or knows_texts(checkpoint := load_checkpoint(source)):
            from visual_search.text.search import load_text_model

            found = load_text_model(source)
            self.encoder, self.size = found.encoder.to(self.device), found.input_size
            self.settings, self.embedder = found.settings, found.embedder.eval()
            self.dimension = self.encoder.embed_texts(["a"]).shape[1]
            facts: tuple[Any, ...] = found.facts(self.encoder)
        else:
            self.size = checkpoint.architecture.input_size
            self.dimension = checkpoint.architecture.dimension
            self.settings = EmbedSettings.parsed(
                checkpoint.facts.get("embedding") or {}, str(checkpoint.path)
            )
            self.embedder = load_model(checkpoint, self.device)
            facts = (fingerprint(source), self.size, asdict(self.settings))
        told = json.dumps([*facts, PIXELS_VERSION], sort_keys=True)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()
        self._plan: InferencePlan | None = None

    def embed(self, items: Sequence[ImageItem], *, gallery: bool = False) -> list[Embedded]:
        """Images as unit vectors; `gallery`: with their white borders cut as the settings say."""
        items = trimmed(items, self.settings) if gallery else items
        how: dict[str, Any] = {"device": self.device, "settings": self.settings}
        if self._plan is None:
            self._plan = plan_inference(self.embedder, items, self.size, **how)
        found = embed_images(self._plan, items, self.size, progress=False, **how)
        notes = {problem.path: problem.reason for problem in found.problems}
        return [
            Embedded(vector if (note := notes.get(str(item.path))) is None
                     or not note.endswith(UNUSED) else None, note)
            for item, vector in zip(items, found.matrix.numpy(), strict=True)
        ]  # fmt: skip

    def propose_box(self, item: ImageItem) -> Box | Refusal | None:
        """Where the product of an image is likely to be, from the model's last feature map.

        The box round the places whose features are longer than half of the longest; None where
        the model shows no map, or all of the image is alike.
        """
        square, problem = load_pixels(item, self.size)
        if problem and problem.reason.endswith(UNUSED):
            return _unusable(Embedded(None, problem.reason))
        with torch.inference_mode():
            places = _activations(self.embedder, torch.from_numpy(square)[None].to(self.device))
        if places is None:
            return None
        shape = (BOX_SIDE, BOX_SIDE)
        places = F.interpolate(places[None, None], shape, mode="bicubic", align_corners=False)[0, 0]
        places = (places - places.min()) / (places.max() - places.min()).clamp(min=1e-9)
        rows, columns = (places > BOX_LEVEL).nonzero(as_tuple=True)
        if not len(rows):
            return None
        width, height = (side / BOX_SIDE for side in stored_size(item.path))
        x, y = round(int(columns.min()) * width), round(int(rows.min()) * height)
        right, bottom = round(int(columns.max() + 1) * width), round(int(rows.max() + 1) * height)
        return x, y, max(right - x, 1), max(bottom - y, 1)


def _is_clip(source: Path) -> bool:
    """Whether a model is a CLIP that others have trained, without a run of its own."""
    named = source.parts[:1] == ("open_clip",) and not source.is_dir()
    return named or is_first_ru_clip(source) or is_clip_folder(source)


def _activations(model: Any, pixels: Tensor) -> Tensor | None:
    """The length of the features at each place of the last map or tokens, `(h, w)`."""
    if not isinstance(model, nn.Module):
        return None
    last: list[Tensor] = []

    def look(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and (found := _as_map(output[:1])) is not None:
            last[:] = [found]

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(look))
        model(pixels)
    return last[0] if last else None


def _as_map(features: Tensor) -> Tensor | None:
    """`(1, C, h, w)`, `(1, h, w, C)` or `(1, tokens, C)` as lengths `(h, w)`; None for others."""
    if features.ndim == 4 and features.shape[2] == features.shape[3] > 1:
        return features.float().norm(dim=1)[0]
    if features.ndim == 4 and features.shape[1] == features.shape[2] > 1:
        return features.float().norm(dim=3)[0]
    if features.ndim == 3 and (side := math.isqrt(features.shape[1])) > 1:
        # Class tokens and registers stand in front of the patches.
        return features[0, -side * side :].float().norm(dim=1).view(side, side)
    return None


Kind = Literal["image", "gallery", "text", "box"]
"""Of a query: an image of it or of the gallery, a text, or an image whose box is asked for."""


class ModelThread:
    """The one thread that runs a model: it takes what waits, images together and texts together."""

    def __init__(self, model: QueryModel) -> None:
        self.model = model
        self.waiting: queue.Queue[tuple[Future[Any], Kind, Any] | None] = queue.Queue(WAITING)
        # A daemon: a model that hangs must not keep the process from its end.
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def submit(self, kind: Kind, query: Any) -> Future[Any]:
        """Ask for the vector of an ImageItem or a text, or for a box.

        Raises:
            Refusal: where too many wait.
        """
        answer: Future[Any] = Future()
        try:
            self.waiting.put_nowait((answer, kind, query))
        except queue.Full:
            raise Refusal(503, "too many queries wait: try again", 1) from None
        return answer

    def stop(self) -> None:
        """End the thread once all that waits is answered."""
        self.waiting.put(None)

    def _work(self) -> None:
        batch: list[tuple[Future[Any], Kind, Any] | None] = []
        while None not in batch:
            batch = [self.waiting.get()]
            with suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self.waiting.get_nowait())
            live = [one for one in batch if one and one[0].set_running_or_notify_cancel()]
            for kind in dict.fromkeys(kind for _, kind, _ in live):
                some = [(future, query) for future, what, query in live if what == kind]
                try:
                    answers = self._answers(kind, [query for _, query in some])
                except Exception as error:
                    answers = [error] * len(some)
                for (future, _), answer in zip(some, answers, strict=True):
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)

    def _answers(self, kind: Kind, queries: Sequence[Any]) -> Sequence[Any]:
        if kind == "box":
            return [self.model.propose_box(item) for item in queries]
        if kind == "text":
            if self.model.encoder is None:
                raise Refusal(422, "this model knows no texts: ask with an image")
            vectors = self.model.encoder.embed_texts(list(queries)).numpy()
            return [Embedded(vector, None) for vector in vectors]
        found = self.model.embed(queries, gallery=kind == "gallery")
        return [one if one.vector is not None else _unusable(one) for one in found]


def answer_of(future: Future[Any]) -> Any:
    """What a model answered.

    Raises:
        Refusal: where it is too busy, or cannot.
    """
    try:
        return future.result(SECONDS)
    except TimeoutError:
        future.cancel()
        raise Refusal(503, "the model is too busy: try again", 2) from None


def _unusable(image: Embedded) -> Refusal:
    return Refusal(422, f"the image cannot be used: {image.problem}")
