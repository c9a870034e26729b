"""JPEGs decoded and resized on a CUDA device; what nvJPEG does not take goes the CPU's way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visual_search.images import (
    Box,
    ImageItem,
    ImageProblem,
    UnreadableImage,
    clip_box,
    load_pixels,
    read_bytes,
    stored_size,
)

# A photo of more pixels is left to the CPU, which decodes it at a fraction of its size: 32 million
# are 100 MB as bytes and four times as much while they are resized.
MAX_PHOTO_PIXELS = 32_000_000
# The same for what a batch would hold decoded at once: 400 million are 1.2 GB.
MAX_BATCH_PIXELS = 400_000_000


def nvjpeg_decode(device: torch.device) -> Any | None:
    """torchvision's decoder of lists of JPEGs, or None where `device` or the package has none."""
    if device.type != "cuda":
        return None
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        return None

    def decode(files: list[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in favour of another package
            return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)

    return decode


def load_batch_on_gpu(
    items: Sequence[ImageItem], size: int, device: torch.device
) -> tuple[Tensor, list[ImageProblem | None]]:
    """The squares that :func:`visual_search.images.load_pixels` gives, made on a CUDA device.

    The filter is the same; rounding is not, and a photo is never decoded at a fraction of its
    size. Damaged, odd and very large files, boxes that reach outside and trimmed borders go
    through `load_pixels`, so that one place decides on them.

    Returns:
        `(n, 3, size, size)`, uint8, on `device`, and what was wrong with each photo.
    """
    decode = nvjpeg_decode(device)
    squares: list[Tensor | None] = [None] * len(items)
    problems: list[ImageProblem | None] = [None] * len(items)
    files = [None if decode is None else _whole_jpeg(item) for item in items]
    files = _within_memory(files)
    chosen = [number for number, file in enumerate(files) if file is not None]
    decoded: list[Tensor] = []
    if decode is not None and chosen:
        try:
            decoded = decode([file for file in files if file is not None])
        except RuntimeError:  # it says not which file of the list; out of memory is one as well
            decoded = []
    for number, image in zip(chosen, decoded, strict=False):
        try:
            squares[number] = _square(image, items[number].box, size)
        except torch.OutOfMemoryError:
            break  # the rest goes the other way
    for number, item in enumerate(items):
        if squares[number] is None:
            pixels, problems[number] = load_pixels(item, size)
            squares[number] = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return torch.stack([square for square in squares if square is not None]), problems


def _whole_jpeg(item: ImageItem) -> Tensor | None:
    """The bytes of a JPEG with its end marker in place; None for anything else."""
    try:
        data = read_bytes(item.path)
    except UnreadableImage:
        return None
    if item.trim or data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _within_memory(files: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The files less those whose header tells of more pixels than may be decoded at once."""
    kept: list[Tensor | None] = []
    total = 0
    for file in files:
        size = None if file is None else stored_size(file.numpy().tobytes())
        pixels = 0 if size is None else size[0] * size[1]
        fits = (
            size is not None and pixels <= MAX_PHOTO_PIXELS and total + pixels <= MAX_BATCH_PIXELS
        )
        kept.append(file if fits else None)
        total += pixels if fits else 0
    return kept


def _square(image: Tensor, box: Box | None, size: int) -> Tensor | None:
    """The region of `(3, height, width)` resized; None where the box is not wholly inside."""
    if box is not None:
        if clip_box(box, image.shape[2], image.shape[1]) != box:
            return None
        x, y, w, h = box
        image = image[:, y : y + h, x : x + w]
    square = F.interpolate(image[None].float(), (size, size), mode="bicubic", antialias=True)
    return square[0].round_().clamp_(0, 255).to(torch.uint8)


def nvjpeg_pays(items: Sequence[ImageItem], size: int, device: torch.device, threads: int) -> bool:
    """Whether the device reads these photos sooner than `threads` CPU threads would."""
    if nvjpeg_decode(device) is None:
        return False
    load_batch_on_gpu(items, size, device)  # the first call sets the decoder up
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    load_batch_on_gpu(items, size, device)
    torch.cuda.synchronize(device)
    middle = time.perf_counter()
    for item in items:
        load_pixels(item, size)
    return middle - started < (time.perf_counter() - middle) / threads
