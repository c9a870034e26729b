"""The stage that embeds images, by the very function that the ranker embeds with."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import daft
from daft import DataType, Series

from dataset.dataset_creation_steps.photos import is_stopped

if TYPE_CHECKING:
    from visual_search.model.embedder import Embedder
    from visual_search.ranking.precision import InferencePlan

EMBED_BATCH = 64


class EmbedStage:
    """Bytes of photos to embeddings, by the very function that the ranker embeds with."""

    def __init__(self, run: str) -> None:
        """
        Args:
            run: of the model; see :func:`load_embedder`.
        """
        from visual_search.ranking.embed import default_device

        # The engine calls from several threads; the model has all cores for one batch at a time.
        self.lock = threading.Lock()
        self.device = default_device()
        self.model, self.input_size = load_embedder(Path(run))
        self.model.to(self.device)
        self.plan: InferencePlan | None = None

    @daft.method.batch(
        return_dtype=DataType.struct(
            {"vector": DataType.list(DataType.float32()), "reason": DataType.string()}
        ),
        batch_size=EMBED_BATCH,
    )
    def embed(self, data: Series) -> list[dict[str, Any]]:
        """Of each photo a unit vector, or what is wrong with the photo; nulls stay nulls."""
        photos = data.to_pylist()
        there = [number for number, photo in enumerate(photos) if photo is not None]
        answers: list[dict[str, Any]] = [{"vector": None, "reason": None} for _ in photos]
        if not there or is_stopped():
            return answers
        vectors, reasons = self._embedded([photos[number] for number in there])
        for number, vector, reason in zip(there, vectors, reasons, strict=True):
            answers[number] = {"vector": None if reason else vector, "reason": reason}
        return answers

    def _embedded(self, photos: Sequence[bytes]) -> tuple[Any, list[str | None]]:
        from visual_search.config import EmbedSettings
        from visual_search.data.images import ImageItem
        from visual_search.ranking.embed import embed_images
        from visual_search.ranking.precision import plan_inference

        # Not "auto": a run that goes on after a kill has to embed as it did before.
        settings = EmbedSettings(precision="fp16" if self.device.type == "cuda" else "fp32")

        # The ranker's function reads files; these live for as long as one batch.
        with tempfile.TemporaryDirectory() as folder:
            items = [ImageItem(Path(folder) / str(number)) for number in range(len(photos))]
            for item, photo in zip(items, photos, strict=True):
                item.path.write_bytes(photo)
            with self.lock:
                self.plan = self.plan or plan_inference(
                    self.model, items, self.input_size, device=self.device, settings=settings
                )
                found = embed_images(
                    self.plan,
                    items,
                    self.input_size,
                    device=self.device,
                    settings=settings,
                    progress=False,
                )
        problems = {problem.path: problem.reason for problem in found.problems}
        return found.matrix.numpy(), [problems.get(str(item.path)) for item in items]


def embed_stage(gpus: float = 0.0) -> Any:
    """The class for the engine: a model in each worker process, with its share of GPUs."""
    return daft.cls(EmbedStage, gpus=gpus, use_process=False)


def load_embedder(source: Path) -> tuple[Embedder, int]:
    """The model of a run, a checkpoint or an export, and its input side in pixels.

    Raises:
        UserError: when there is no such model.
    """
    import torch

    from visual_search.model.checkpoint import load_checkpoint
    from visual_search.model.embedder import rebuild_embedder

    checkpoint = load_checkpoint(source)
    embedder = rebuild_embedder(checkpoint.architecture)
    embedder.load_state_dict(dict(checkpoint.state))
    embedder = embedder.eval().to(memory_format=torch.channels_last)
    return embedder, checkpoint.architecture.input_size
