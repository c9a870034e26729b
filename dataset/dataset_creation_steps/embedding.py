"""The stage that embeds images, by the very function that the ranker embeds with."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import daft
import torch
from daft import DataType, Series

from dataset.dataset_creation_steps.snapshots import is_stopped
from visual_search.common.model_config import EmbedSettings
from visual_search.data.images import ImageItem
from visual_search.model.checkpoint import load_checkpoint
from visual_search.ranking.embed import default_device, embed_images
from visual_search.ranking.inference_plan import InferencePlan, plan_inference

EMBED_BATCH = 64


class EmbedStage:
    """Bytes of images to embeddings; give it to `daft.cls`, a model in each worker process."""

    def __init__(self, run: str) -> None:
        """`run`: a run, a checkpoint or an export; a UserError where there is no such model."""
        # The engine calls from several threads; the model has all cores for one batch at a time.
        self.lock = threading.Lock()
        self.device = default_device()
        checkpoint = load_checkpoint(Path(run))
        self.input_size = checkpoint.architecture.input_size
        model = checkpoint.embedder().to(self.device)
        self.model = model.to(memory_format=torch.channels_last)
        # Not "auto": a run that goes on after a kill has to embed as it did before.
        self.settings = EmbedSettings(precision="fp16" if self.device.type == "cuda" else "fp32")
        self.plan: InferencePlan | None = None

    @daft.method.batch(
        return_dtype=DataType.struct(
            {"vector": DataType.list(DataType.float32()), "reason": DataType.string()}
        ),
        batch_size=EMBED_BATCH,
    )
    def embed(self, data: Series) -> list[dict[str, Any]]:
        """Of each image a unit vector, or what is wrong with the image; nulls stay nulls."""
        images = data.to_pylist()
        there = [number for number, image in enumerate(images) if image is not None]
        answers: list[dict[str, Any]] = [{"vector": None, "reason": None} for _ in images]
        if not there or is_stopped():
            return answers
        vectors, reasons = self._embedded([images[number] for number in there])
        for number, vector, reason in zip(there, vectors, reasons, strict=True):
            answers[number] = {"vector": None if reason else vector, "reason": reason}
        return answers

    def _embedded(self, images: Sequence[bytes]) -> tuple[Any, list[str | None]]:
        # The ranker's function reads files; these live for as long as one batch.
        with tempfile.TemporaryDirectory() as folder:
            items = [ImageItem(Path(folder) / str(number)) for number in range(len(images))]
            for item, image in zip(items, images, strict=True):
                item.path.write_bytes(image)
            how: dict[str, Any] = {"device": self.device, "settings": self.settings}
            with self.lock:
                self.plan = self.plan or plan_inference(self.model, items, self.input_size, **how)
                found = embed_images(self.plan, items, self.input_size, **how, progress=False)
        problems = {problem.path: problem.reason for problem in found.problems}
        return found.matrix.numpy(), [problems.get(str(item.path)) for item in items]
