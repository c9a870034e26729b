"""The two stages that the engine runs for every photo: fetch it, embed it.

Both take and give whole batches, so that the engine holds only a few batches of photos between
them, and the network and the model work at the same time.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import daft
from daft import DataType, Series

from dataset.dataset_creation_steps.image_urls import sized_image
from visual_search.downloads import Download, Downloader, DownloadLimits
from visual_search.photo_checks import photo_problem

if TYPE_CHECKING:
    import pyarrow as pa

    from visual_search.model import Embedder
    from visual_search.probing import Prepared

FETCH_BATCH = 64
FETCH_BATCHES = 4
"""Fetched at a time, so that one slow photo does not hold up all others."""

EMBED_BATCH = 64

NOT_THERE = {"HTTP 400", "HTTP 403", "HTTP 404", "HTTP 410"}


_stopped = threading.Event()
"""Set where nobody waits for the rest of a query; see :func:`stoppable`."""


def stoppable(batches: Iterator[pa.RecordBatch]) -> Generator[pa.RecordBatch, None, None]:
    """The results of a query, whose stages stop working as soon as nobody takes them any more.

    The engine lets a query run to its end before it lets go of it, be it hours.
    """
    _stopped.clear()
    finished = False
    try:
        # Not `yield from`: that would close the query before its stages are told.
        for batch in batches:  # noqa: UP028
            yield batch
        finished = True
    finally:
        if not finished:
            _stopped.set()


async def fetch_in_stage(downloader: Downloader, url: str, size_hint: int | None) -> Download:
    """As :func:`fetch_photo`, for a stage of a :func:`stoppable` query."""
    if _stopped.is_set():
        return Download(url, None, "stopped")
    return await fetch_photo(downloader, url, size_hint)


async def fetch_photo(downloader: Downloader, url: str, size_hint: int | None) -> Download:
    """Download a photo in the wanted size; where the server has no such size, as it is.

    Without a hint the address is taken as it stands.
    The bytes are looked at: what does not begin as an image of at least some pixels is refused.
    """
    sized = url if size_hint is None else sized_image(url, size_hint)
    found = await downloader.fetch(sized)
    if sized != url and found.reason in NOT_THERE:
        found = await downloader.fetch(url)
    if found.data is None:
        return Download(url, None, found.reason)
    problem = photo_problem(found.data)
    return Download(url, None if problem else found.data, problem)


@daft.cls(max_concurrency=FETCH_BATCHES, use_process=False)
class FetchStage:
    """Addresses to the bytes of photos."""

    def __init__(self, limits: DownloadLimits, size_hint: int) -> None:
        self.size_hint = size_hint
        self.downloader = Downloader(limits)

    @daft.method.batch(
        return_dtype=DataType.struct({"data": DataType.binary(), "reason": DataType.string()}),
        batch_size=FETCH_BATCH,
    )
    async def fetch(self, urls: Series) -> list[dict[str, Any]]:
        """Of each address the bytes, or the reason why there are none."""
        got = await asyncio.gather(
            *(fetch_in_stage(self.downloader, url, self.size_hint) for url in urls.to_pylist())
        )
        return [{"data": download.data, "reason": download.reason} for download in got]


class EmbedStage:
    """Bytes of photos to embeddings, by the very function that the ranker embeds with."""

    def __init__(self, run: str, photos: int) -> None:
        """
        Args:
            run: of the model; see :func:`load_embedder`.
            photos: about how many are to be embedded: how long it pays to look for the fastest way.
        """
        from visual_search.embed import default_device

        # The engine calls from several threads; the model has all cores for one batch at a time.
        self.lock = threading.Lock()
        self.photos = photos
        self.device = default_device()
        self.model, self.input_size = load_embedder(Path(run))
        self.model.to(self.device)
        self.prepared: Prepared | None = None

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
        if not there or _stopped.is_set():
            return answers
        vectors, reasons = self._embedded([photos[number] for number in there])
        for number, vector, reason in zip(there, vectors, reasons, strict=True):
            answers[number] = {"vector": None if reason else vector, "reason": reason}
        return answers

    def _embedded(self, photos: Sequence[bytes]) -> tuple[Any, list[str | None]]:
        from visual_search.embed import embed_images, prepare_for
        from visual_search.embed_settings import EmbedSettings
        from visual_search.images import ImageItem

        # Not "auto": a run that goes on after a kill has to embed as it did before.
        settings = EmbedSettings(precision="fp16" if self.device.type == "cuda" else "fp32")

        # The ranker's function reads files; these live for as long as one batch.
        with tempfile.TemporaryDirectory() as folder:
            items = [ImageItem(Path(folder) / str(number)) for number in range(len(photos))]
            for item, photo in zip(items, photos, strict=True):
                item.path.write_bytes(photo)
            with self.lock:
                self.prepared = self.prepared or prepare_for(
                    self.model,
                    items,
                    self.input_size,
                    self.photos,
                    device=self.device,
                    settings=settings,
                )
                found = embed_images(
                    self.prepared,
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

    from visual_search.checkpoint import load_checkpoint
    from visual_search.model import rebuild_embedder

    checkpoint = load_checkpoint(source)
    embedder = rebuild_embedder(checkpoint.architecture)
    embedder.load_state_dict(dict(checkpoint.state))
    embedder = embedder.eval().to(memory_format=torch.channels_last)
    return embedder, checkpoint.architecture.input_size
