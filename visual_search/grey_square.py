"""The 32 x 32 grey square that a perceptual hash starts from, as Pillow makes it, faster.

Pillow greys and resizes in whole numbers: weights are multiples of 2^-16 and 2^-22, and after each
pass a pixel is rounded to 0..255 (libImaging/Convert.c and Resample.c). The same sums in compiled
loops use the processor's vector units, and decoding needs no copy of the pixels.
"""

from __future__ import annotations

import io
import math
import threading
from functools import lru_cache

import numpy as np
import simplejpeg
from numba import int32, njit, uint8
from PIL import Image

from visual_search.images import MAX_DECODED_PIXELS

SIDE = 32
PRECISION = 22
"""Bits behind the point of a weight."""


def square_of_jpeg(data: bytes) -> tuple[np.ndarray, tuple[int, int]] | None:
    """The grey square of a sound JPEG file, `(32, 32)`, uint8, and its width and height in pixels.

    None for all else, and where Pillow would do otherwise: then ask :func:`square_of_image`.
    """
    if not data.startswith(b"\xff\xd8") or not equals_pillow():
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if not rows_first(height, width) or width * height > MAX_DECODED_PIXELS:
            return None
        if colours not in ("YCbCr", "Gray"):
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=_room(3 * width * height))
    except ValueError:  # not sound
        return None
    return resized(pixels), (width, height)


_of_thread = threading.local()


def _room(size: int) -> np.ndarray:
    """Memory of this thread's own, `(size,)`, uint8: pages that are new each time cost a third."""
    room: np.ndarray = getattr(_of_thread, "room", np.zeros(0, dtype=np.uint8))
    if len(room) < size:
        room = _of_thread.room = np.empty(size, dtype=np.uint8)
    return room[:size]


def square_of_image(image: Image.Image) -> np.ndarray:
    """What Pillow makes of `image.convert("L").resize((32, 32), LANCZOS)`, `(32, 32)`, uint8."""
    grey = image.convert("L")
    if not rows_first(grey.height, grey.width) or not equals_pillow():
        return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return resized(np.asarray(grey))


def rows_first(height: int, width: int) -> bool:
    """Whether Pillow shrinks rows before columns; it has the other order for high photos."""
    return height + SIDE <= 2 * width


@lru_cache(1)
def equals_pillow() -> bool:
    """Whether the Pillow at hand decodes, greys and resizes by the arithmetic followed here."""
    drawn = np.random.default_rng(0)
    for height, width, subsampling in ((20, 31, 0), (97, 130, 1), (211, 143, 2)):
        # Full contrast: values beyond 0 and 255 have to be cut as Pillow cuts them.
        pixels = drawn.choice(np.array([0, 255], dtype=np.uint8), (height, width, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", subsampling=subsampling)
        ours = simplejpeg.decode_jpeg(buffer.getvalue(), "RGB")
        grey = Image.open(buffer).convert("L")
        theirs = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        for same in (ours, np.asarray(grey)):
            if not np.array_equal(resized(same), theirs):
                return False
    return True


def resized(pixels: np.ndarray) -> np.ndarray:
    """Lanczos to 32 x 32 as Pillow computes it, bit for bit: rows first, then columns.

    Args:
        pixels: `(height, width)`, grey, or `(height, width, 3)`, RGB, which is greyed as Pillow
            does it; uint8.

    Returns:
        `(32, 32)`, uint8.
    """
    height, width = pixels.shape[:2]
    shrink = _resized_grey if pixels.ndim == 2 else _resized_colour
    rows = shrink(pixels.reshape(height, -1), *_weights(width))
    return _resized_grey(np.ascontiguousarray(rows.T), *_weights(height)).T


@njit(nogil=True, cache=True)
def _resized_colour(pixels: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each row of `(height, 3 * width)`, red, green, blue in turns, to 32 grey pixels."""
    height, width = pixels.shape[0], pixels.shape[1] // 3
    answer = np.empty((height, SIDE), dtype=np.uint8)
    row = np.zeros(width + weights.shape[1], dtype=np.int32)
    for y in range(height):
        for x in range(width):
            total = int32(int32(19595) * int32(pixels[y, 3 * x]) + int32(1 << 15))
            total = int32(total + int32(int32(38470) * int32(pixels[y, 3 * x + 1])))
            total = int32(total + int32(int32(7471) * int32(pixels[y, 3 * x + 2])))
            row[x] = int32(total >> int32(16))
        _weigh(row, first, weights, answer[y])
    return answer


@njit(nogil=True, cache=True)
def _resized_grey(pixels: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each row of `(height, width)` to 32 pixels."""
    height, width = pixels.shape
    answer = np.empty((height, SIDE), dtype=np.uint8)
    row = np.zeros(width + weights.shape[1], dtype=np.int32)
    for y in range(height):
        for x in range(width):
            row[x] = pixels[y, x]
        _weigh(row, first, weights, answer[y])
    return answer


@njit(nogil=True, cache=True)
def _weigh(row: np.ndarray, first: np.ndarray, weights: np.ndarray, answer: np.ndarray) -> None:
    """Sum up the 32 windows of a row, which has zeros behind it for the last to reach over."""
    for target in range(SIDE):
        window = row[first[target] : first[target] + weights.shape[1]]
        taps = weights[target]
        # 32 bits throughout, or the sum would not go into vectors; Pillow's are as wide.
        total = int32(1 << (PRECISION - 1))
        for i in range(window.shape[0]):
            total = int32(total + int32(window[i] * taps[i]))
        answer[target] = uint8(min(max(int32(total >> int32(PRECISION)), 0), 255))


@lru_cache(256)
def _weights(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's Lanczos weights from `length` pixels to 32, in units of 2^-22.

    Returns:
        `(32,)`, int32, the first pixel of each window, and `(32, longest window)`, int32, with
        zeros behind the shorter ones.
    """
    scale = length / SIDE
    stretch = max(scale, 1.0)
    firsts, windows = [], []
    for target in range(SIDE):
        center = (target + 0.5) * scale
        first = max(int(center - 3 * stretch + 0.5), 0)
        last = min(int(center + 3 * stretch + 0.5), length)
        taps = [_lanczos((x - center + 0.5) / stretch) for x in range(first, last)]
        total = 0.0
        for tap in taps:
            total += tap
        firsts.append(first)
        windows.append([_in_units(tap / total) for tap in taps])
    weights = np.zeros((SIDE, max(map(len, windows))), dtype=np.int32)
    for target, window in enumerate(windows):
        weights[target, : len(window)] = window
    return np.array(firsts, dtype=np.int32), weights


def _in_units(weight: float) -> int:
    return int(weight * (1 << PRECISION) + (0.5 if weight >= 0 else -0.5))


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0
