"""A list of photos to a matrix of embeddings.

Several threads, each reading a batch of photos and running the model on it: on a CPU every core
is busy with one or the other and none waits; on a GPU they read while it works for one of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visual_search.clock import Clock, Pacer, Step
from visual_search.cores import available_cores
from visual_search.device_lane import lane_of
from visual_search.embed_settings import EmbedSettings
from visual_search.errors import first_line
from visual_search.images import ImageItem, ImageProblem, load_pixels
from visual_search.inference import Answer
from visual_search.nvjpeg import load_batch_on_gpu, nvjpeg_pays
from visual_search.probing import Compiled, Prepared, prepare
from visual_search.progress import progress_bar
from visual_search.side_by_side import threads_restored, use_threads
from visual_search.views import larger_side, mean_embedding, views_of

# Photos that the probe sees.
PROBE_PHOTOS = 8


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a list of photos, and what happened on the way."""

    matrix: Tensor
    """`(n, dimension)`, float32 on the CPU, rows of length 1, or 0 where nothing could be had."""
    problems: tuple[ImageProblem, ...]
    """Of damaged photos, in their order."""
    seconds: float = 0.0
    """From the first photo to the last."""
    decode_seconds: float = 0.0
    """Of all threads together."""
    model_seconds: float = 0.0
    """Of all threads together."""
    recomputed: int = 0
    """Rows that were not finite and were computed again in fp32."""
    zeroed: int = 0
    """Rows that were not finite even then."""


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_for(
    model: Answer,
    items: Sequence[ImageItem],
    input_size: int,
    photos: int,
    *,
    device: torch.device,
    settings: EmbedSettings | None = None,
    compiled: Compiled | None = None,
    seconds: float = float("inf"),
) -> Prepared:
    """Choose how to run `model` from its pace on the first photos.

    Args:
        model: uint8 pixels to unit vectors, in evaluation mode, on `device`.
        items: photos of the kind that is to be embedded.
        input_size: side of the model's input in pixels.
        photos: how many are to be embedded in all.
        device: where the model is.
        settings: what is fixed by hand.
        compiled: the same model for another runtime.
        seconds: never measure for longer than this.
    """
    loaded = [load_pixels(item, input_size)[0] for item in items[:PROBE_PHOTOS]]
    prepared = prepare(
        model,
        torch.from_numpy(np.stack(loaded)),
        photos,
        device=device,
        cores=available_cores(),
        settings=settings,
        compiled=compiled,
        seconds=seconds,
    )
    wanted = settings.decoder if settings else "auto"
    if wanted == "auto" and device.type == "cuda":
        sample = items[: prepared.batch_size]
        pays = nvjpeg_pays(sample, input_size, device, prepared.streams)
        wanted = "nvjpeg" if pays else "cpu"
    return replace(prepared, decoder="nvjpeg" if wanted == "nvjpeg" else "cpu")


def embed_images(
    model: Answer | Prepared,
    items: Sequence[ImageItem],
    input_size: int,
    *,
    device: torch.device,
    batch_size: int = 0,
    workers: int = 0,
    settings: EmbedSettings | None = None,
    pacer: Pacer | None = None,
    label: str = "embedding",
    progress: bool = True,
) -> Embeddings:
    """Embed photos in the order given. Never fails for a photo: see `problems` of the answer.

    A batch on which the model fails is tried once more, read on the CPU and in fp32; where that
    fails too, its photos keep the zero vector and are listed. A model that fails on its first
    batches, one more than there are streams, or on all, is broken: what it raised is raised.

    Args:
        model: uint8 pixels `(N, 3, input_size, input_size)` to unit vectors, on `device` and in
            evaluation mode; or the same prepared already.
        items: the photos.
        input_size: side of the model's input in pixels.
        device: where the model is.
        batch_size: photos a step; 0: of the settings, or measured.
        workers: threads; 0: of the settings, or one for each core.
        settings: precision, views and their like.
        pacer: of a time limit; photos for which it leaves no time keep the zero vector.
        label: what the progress bar says.
        progress: whether there is a progress bar.
    """
    if not items:
        raise ValueError("embed_images needs at least one photo")
    settings = settings or EmbedSettings()
    if batch_size or workers:
        settings = replace(
            settings,
            batch_size=batch_size or settings.batch_size,
            workers=workers or settings.workers,
        )
    if not isinstance(model, Prepared):
        model = prepare_for(model, items, input_size, len(items), device=device, settings=settings)
    pacer = pacer or Pacer(Clock(), len(items), input_size, settings.views)
    bar = progress_bar(label, "img", total=len(items), shown=progress)
    with bar:
        return _Job(model, items, settings, pacer, bar).run()


class _Job:
    """One call of :func:`embed_images`, shared by its threads."""

    def __init__(
        self,
        prepared: Prepared,
        items: Sequence[ImageItem],
        settings: EmbedSettings,
        pacer: Pacer,
        bar: Any,
    ) -> None:
        self.prepared, self.items, self.settings = prepared, items, settings
        self.pacer, self.bar = pacer, bar
        # Few photos are spread over all threads.
        self.batch = min(prepared.batch_size, -(-len(items) // prepared.streams))
        self.lock = threading.Lock()
        self.position = 0
        self.finished = 0
        self.matrix: Tensor | None = None
        self.problems: dict[int, ImageProblem] = {}
        self.decode_seconds = self.model_seconds = 0.0
        self.recomputed = self.zeroed = 0
        self.failure: BaseException | None = None
        self.succeeded = self.failed = 0
        """Batches."""
        self.first_error: Exception | None = None
        """Of a batch that failed."""
        self.over = False

    def run(self) -> Embeddings:
        started = time.perf_counter()
        # Daemons: one that hangs in a model must not keep the process from its end.
        threads = [
            threading.Thread(target=self._stream, daemon=True) for _ in range(self.prepared.streams)
        ]
        with threads_restored():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(min(max(self.pacer.left(), 0.0), threading.TIMEOUT_MAX))
        with self.lock:
            self.over = True
            if self.first_error is not None and not self.succeeded:
                self.failure = self.failure or self.first_error
            if self.failure is not None:
                raise self.failure
            matrix = self.matrix
            unfinished = len(self.items) - self.finished
            self.pacer.leave_out(unfinished, len(self.items) - self.position)
        if matrix is None:  # not one batch in time: any width will do
            matrix = torch.zeros(len(self.items), 1)
        return Embeddings(
            matrix,
            tuple(problem for _, problem in sorted(self.problems.items())),
            time.perf_counter() - started,
            self.decode_seconds,
            self.model_seconds,
            self.recomputed,
            self.zeroed,
        )

    def _stream(self) -> None:
        try:
            use_threads(self.prepared.threads)
            with torch.inference_mode():
                while (batch := self._take()) is not None:
                    self._embed_or_leave(*batch)
        except BaseException as error:
            with self.lock:
                self.failure = self.failure or error

    def _take(self) -> tuple[int, int, Step | None] | None:
        with self.lock:
            start = self.position
            if self.over or self.failure is not None or start >= len(self.items):
                return None
            self.position = stop = min(start + self.batch, len(self.items))
        return start, stop, self.pacer.next(stop - start, self.prepared.streams)

    def _embed_or_leave(self, start: int, stop: int, step: Step | None) -> None:
        while step is not None:
            try:
                return self._embed(start, stop, step)
            except Exception as error:
                if step.size == self.pacer.size:
                    return self._embed_again(start, stop, step, error)
                step = self.pacer.refused(step, stop - start, self.prepared.streams)
        return self._keep(start, stop, None, None, {})

    def _embed_again(self, start: int, stop: int, step: Step, first: Exception) -> None:
        """Try a batch that failed once more; if in vain, leave it, or find the model broken."""
        try:
            return self._embed(start, stop, step, careful=True)
        except Exception:
            with self.lock:
                self.failed += 1
                self.first_error = self.first_error or first
                # Other streams may be at work on their first batches.
                if not self.succeeded and self.failed > self.prepared.streams:
                    raise first from None
        reason = f"the model failed on its batch ({first_line(first)}); 0 is used"
        problems = {
            number: ImageProblem(str(self.items[number].path), reason)
            for number in range(start, stop)
        }
        with self.lock:
            self.zeroed += stop - start
        return self._keep(start, stop, step, None, problems)

    def _embed(self, start: int, stop: int, step: Step, careful: bool = False) -> None:
        """Embed a batch; `careful`: read on the CPU, and by the model in fp32."""
        begun = time.perf_counter()
        items = self.items[start:stop]
        crops, flip = step.views and self.settings.crops, step.views and self.settings.flip
        pixels, found = self._load(items, larger_side(step.size) if crops else step.size, careful)
        loaded = time.perf_counter()
        vectors, broken, seconds = self._vectors(pixels, step.size, flip, careful)
        done = time.perf_counter()
        problems = {start + k: problem for k, problem in enumerate(found) if problem is not None}
        for k in broken:
            reason = "the model gave no finite embedding; 0 is used"
            problems[start + k] = ImageProblem(str(items[k].path), reason)
        self.pacer.record(step, stop - start, loaded - begun, done - loaded)
        with self.lock:
            self.succeeded += 1
            self.decode_seconds += loaded - begun
            self.model_seconds += seconds
        self._keep(start, stop, step, vectors, problems)

    def _keep(
        self,
        start: int,
        stop: int,
        step: Step | None,
        vectors: Tensor | None,
        problems: dict[int, ImageProblem],
    ) -> None:
        with self.lock:
            if self.over:
                return
            self.pacer.count(step, stop - start)
            if vectors is not None:
                if self.matrix is None:
                    self.matrix = torch.zeros(len(self.items), vectors.shape[1])
                self.matrix[start:stop] = vectors
            self.problems.update(problems)
            self.finished += stop - start
            self.bar.update(stop - start)

    def _load(
        self, items: Sequence[ImageItem], size: int, careful: bool
    ) -> tuple[Tensor, list[ImageProblem | None]]:
        device = self.prepared.device
        if self.prepared.decoder == "nvjpeg" and not careful:
            return load_batch_on_gpu(items, size, device)
        # Pixels are written as the model reads them, channels last, and where a GPU fetches them.
        on_gpu = device.type == "cuda"
        batch = torch.empty((len(items), size, size, 3), dtype=torch.uint8, pin_memory=on_gpu)
        problems: list[ImageProblem | None] = []
        for row, item in zip(batch.numpy(), items, strict=True):
            pixels, problem = load_pixels(item, size)
            row[:] = pixels.transpose(1, 2, 0)
            problems.append(problem)
        return batch.permute(0, 3, 1, 2), problems

    def _vectors(
        self, pixels: Tensor, size: int, flip: bool, careful: bool
    ) -> tuple[Tensor, list[int], float]:
        """Embeddings on the CPU, which rows of them no precision could give, and seconds."""
        prepared, count = self.prepared, len(pixels)
        if prepared.device.type == "cuda" and count < self.batch:
            # A batch of another shape would have to wait for plans and kernels of its own.
            pixels = torch.cat([pixels, pixels.new_zeros(self.batch - count, *pixels.shape[1:])])
        fits = prepared.only_size in (0, size) and not careful
        answer = prepared.answer if fits else prepared.exact
        vectors, seconds = self._answered(answer, pixels, size, flip)
        vectors = vectors[:count]
        wrong = (~vectors.isfinite().all(dim=1)).nonzero().flatten()
        if not len(wrong):
            return vectors, [], seconds
        again, more = self._answered(prepared.exact, pixels[wrong.to(pixels.device)], size, flip)
        vectors[wrong] = again
        vectors, broken = replace_non_finite(vectors)
        with self.lock:
            self.recomputed += len(wrong)
            self.zeroed += len(broken)
        return vectors, broken, seconds + more

    def _answered(
        self, answer: Answer, pixels: Tensor, size: int, flip: bool
    ) -> tuple[Tensor, float]:
        """What a model answers, on the CPU, and the seconds it took."""
        forward = partial(self._forward, answer, pixels, size, flip)
        if self.prepared.device.type == "cuda":
            vectors, begun, ended = lane_of(self.prepared.device).run(partial(_marked, forward))
            vectors = vectors.cpu()
            return vectors, begun.elapsed_time(ended) / 1000
        started = time.perf_counter()
        return forward(), time.perf_counter() - started

    def _forward(self, answer: Answer, pixels: Tensor, size: int, flip: bool) -> Tensor:
        """The same on the device, in halves where its memory is short."""
        try:
            on_device = pixels.to(self.prepared.device, non_blocking=True)
            return mean_embedding(answer, views_of(on_device, size, flip))
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
            return torch.cat([self._forward(answer, h, size, flip) for h in pixels.chunk(2)])


def _marked(forward: Callable[[], Tensor]) -> tuple[Tensor, torch.cuda.Event, torch.cuda.Event]:
    """Start `forward` on a GPU, between two marks of time."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    vectors = forward()
    ended.record()
    return vectors, begun, ended


def replace_non_finite(vectors: Tensor) -> tuple[Tensor, list[int]]:
    """Zero rows in place of those with NaN or infinity, and which rows they were."""
    finite = vectors.isfinite().all(dim=1)
    return torch.where(finite[:, None], vectors, 0.0), (~finite).nonzero().flatten().tolist()
