"""A list of photos to a matrix of embeddings; decoding overlaps the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visual_search.cores import available_cores
from visual_search.images import ImageItem, ImageProblem, load_pixels
from visual_search.progress import progress_bar

# Batches decoded ahead of the model: enough that it never waits, little enough for memory.
BATCHES_AHEAD = 3

Loaded = tuple[np.ndarray, ImageProblem | None]


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a list of photos, and which of the photos were damaged."""

    matrix: Tensor
    """`(n, dimension)`, float32 on the CPU, rows of length 1, or 0 where nothing could be had."""
    problems: tuple[ImageProblem, ...]


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def embed_images(
    model: Callable[[Tensor], Tensor],
    items: Sequence[ImageItem],
    input_size: int,
    *,
    device: torch.device,
    batch_size: int = 32,
    workers: int | None = None,
    label: str = "embedding",
    progress: bool = True,
) -> Embeddings:
    """Embed photos in the order given. Never fails for a photo: see `problems` of the answer.

    Args:
        model: uint8 pixels `(N, 3, input_size, input_size)` to unit vectors; already on
            `device` and in evaluation mode.
        items: the photos.
        input_size: side of the model's input in pixels.
        device: where the model is.
        batch_size: photos a step.
        workers: decoding threads; by default one for each core.
        label: what the progress bar says.
        progress: whether there is a progress bar.
    """
    problems: list[ImageProblem] = []
    rows: list[Tensor] = []
    bar = progress_bar(label, "img", total=len(items), shown=progress)
    with torch.inference_mode(), bar:
        for chunk, loaded in _decoded_batches(items, input_size, batch_size, workers):
            pixels = torch.from_numpy(np.stack([image for image, _ in loaded])).to(device)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            # fp16 only where it is faster: on CPUs it is slower than fp32.
            with torch.autocast("cuda", torch.float16, enabled=device.type == "cuda"):
                vectors = model(pixels)
            vectors, broken = replace_non_finite(vectors.float().cpu())
            rows.append(vectors)
            problems += [problem for _, problem in loaded if problem is not None]
            problems += [
                ImageProblem(str(chunk[i].path), "the model gave no finite embedding; 0 is used")
                for i in broken
            ]
            bar.update(len(loaded))
    if not rows:
        raise ValueError("embed_images needs at least one photo")
    return Embeddings(torch.cat(rows), tuple(problems))


def replace_non_finite(vectors: Tensor) -> tuple[Tensor, list[int]]:
    """Zero rows in place of those with NaN or infinity, and which rows they were."""
    finite = vectors.isfinite().all(dim=1)
    return torch.where(finite[:, None], vectors, 0.0), (~finite).nonzero().flatten().tolist()


def _decoded_batches(
    items: Sequence[ImageItem], input_size: int, batch_size: int, workers: int | None
) -> Iterator[tuple[Sequence[ImageItem], list[Loaded]]]:
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    waiting: deque[tuple[Sequence[ImageItem], list[Future[Loaded]]]] = deque()
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        for chunk in chunks:
            waiting.append((chunk, [pool.submit(load_pixels, item, input_size) for item in chunk]))
            if len(waiting) > BATCHES_AHEAD:
                ready, futures = waiting.popleft()
                yield ready, [future.result() for future in futures]
        for ready, futures in waiting:
            yield ready, [future.result() for future in futures]
