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
)


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
    size. Damaged and odd files, boxes that reach outside and trimmed borders go through
    `load_pixels`, so that one place decides on them.

    Returns:
        `(n, 3, size, size)`, uint8, on `device`, and what was wrong with each photo.
    """
    decode = nvjpeg_decode(device)
    squares: list[Tensor | None] = [None] * len(items)
    problems: list[ImageProblem | None] = [None] * len(items)
    files = [None if decode is None else _whole_jpeg(item) for item in items]
    chosen = [number for number, file in enumerate(files) if file is not None]
    decoded: list[Tensor] = []
    if decode is not None and chosen:
        try:
            decoded = decode([file for file in files if file is not None])
        except RuntimeError:  # it says not which file of the list
            decoded = []
    for number, image in zip(chosen, decoded, strict=False):
        squares[number] = _square(image, items[number].box, size)
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
