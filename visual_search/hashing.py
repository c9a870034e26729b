"""Perceptual hashes of photos, equal to those of the packages `imagehash` and `imagededup`.

pHash: grey, 32 x 32 pixels, the 8 x 8 lowest frequencies of its cosine transform, and for each
whether it is above their median (N. Krawetz, "Looks Like It", hackerfactor.com, 2011). Two photos
of which one is a resized, recompressed or slightly retouched copy differ in few of the 64 bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from visual_search.cores import available_cores
from visual_search.dataset_info import read_each
from visual_search.images import MAX_DECODED_PIXELS, UnreadableImage, decode_image

SIDE = 32
FREQUENCIES = 8
Kind = Literal["imagehash", "imagededup"]

# Pillow's resize works in whole numbers: weights are multiples of 2^-22, and after each of its
# two passes a pixel is rounded to 0..255 (libImaging/Resample.c). The same sums as matrix products
# are several times faster, and exact where float64 holds them.
ONE = 1 << 22
# Pixels turned to float32 at a time: they stay in the cache of a core.
BLOCK_PIXELS = 1 << 15
# Pillow turns the order of the passes round for photos much higher than wide.
HIGHEST_ASPECT = 1.5


def photo_hash(path: Path, kind: Kind = "imagehash") -> int:
    """The 64-bit pHash of a photo, EXIF orientation ignored.

    Args:
        path: the file.
        kind: equal to `imagehash.phash` or to imagededup's `PHash`; the two differ in the order
            of greying and resizing, and in whether the mean grey counts for the median.

    Raises:
        UnreadableImage: with the reason, also for a photo that is cut off.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"the file cannot be read ({error.strerror})") from None
    return hash_of(data, kind)


def hash_of(data: bytes, kind: Kind = "imagehash") -> int:
    """The hash of the bytes of an image file; see :func:`photo_hash`."""
    return hash_and_size(data, kind)[0]


def hash_and_size(data: bytes, kind: Kind = "imagehash") -> tuple[int, tuple[int, int]]:
    """The hash of the bytes of an image file, and its stored width and height in pixels."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_DECODED_PIXELS:
            raise UnreadableImage(f"{image.width} x {image.height} pixels are too many to decode")
        image.load()
        square = _grey_square(image) if kind == "imagehash" else _imagededup_square(image)
    except UnreadableImage:
        raise
    except Exception:  # decode_image says in words what is wrong
        image = decode_image(data)
        square = _grey_square(image)
    return int(phash(square[None], kind)[0]), image.size


def hash_photos(paths: Iterable[Path], kind: Kind = "imagehash") -> Iterator[int | UnreadableImage]:
    """The hash of each photo in turn, or why there is none, read by a thread on each core."""
    with one_blas_thread():
        yield from read_each(paths, lambda path: photo_hash(path, kind), available_cores())


def one_blas_thread() -> AbstractContextManager:
    """A context in which a matrix product keeps to its own core: the others hash other photos."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def phash(squares: np.ndarray, kind: Kind = "imagehash") -> np.ndarray:
    """Hashes of grey squares.

    Args:
        squares: `(n, 32, 32)`, uint8.
        kind: see :func:`photo_hash`.

    Returns:
        `(n,)`, uint64; the lowest frequency is the highest bit.
    """
    from scipy.fftpack import dct

    # The same transform as in both packages, to the last bit: on drawn images coefficients are
    # equal, and a rounding error would decide.
    spectrum = dct(dct(squares, axis=1), axis=2)[:, :FREQUENCIES, :FREQUENCIES]
    low = spectrum.reshape(len(squares), -1)
    if kind == "imagehash":
        ordered = np.sort(low, axis=1)
        bits = low > (ordered[:, 31] + ordered[:, 32])[:, None] / 2
    else:
        bits = low >= np.sort(low[:, 1:], axis=1)[:, 31, None]
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def hash_text(value: int) -> str:
    """A hash as both packages write it: 16 hexadecimal digits."""
    return f"{value:016x}"


def _imagededup_square(image: Image.Image) -> np.ndarray:
    colour = image if image.mode == "RGB" else image.convert("RGBA").convert("RGB")
    small = colour.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small.convert("L"))


def _grey_square(image: Image.Image) -> np.ndarray:
    """What Pillow makes of `image.convert("L").resize((32, 32), LANCZOS)`, `(32, 32)`, uint8."""
    grey = image.convert("L")
    if grey.height > HIGHEST_ASPECT * grey.width or not _products_equal_pillow():
        return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return resized(np.asarray(grey))


@lru_cache(1)
def _products_equal_pillow() -> bool:
    """Whether the Pillow at hand still resizes by the arithmetic that :func:`resized` follows."""
    drawn = np.random.default_rng(0)
    for height, width in ((20, 31), (97, 130), (211, 143)):
        # Full contrast: values beyond 0 and 255 have to be cut as Pillow cuts them.
        pixels = drawn.choice(np.array([0, 255], dtype=np.uint8), (height, width))
        theirs = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        if not np.array_equal(resized(pixels), np.asarray(theirs)):
            return False
    return True


def resized(pixels: np.ndarray) -> np.ndarray:
    """Lanczos to 32 x 32 as Pillow computes it, bit for bit: rows first, then columns.

    Args:
        pixels: `(height, width)`, uint8.

    Returns:
        `(32, 32)`, uint8.
    """
    height, width = pixels.shape
    rows = _resized_rows(pixels, width)
    # Whole numbers below 2^53: this product is exact in float64.
    sums = _weights(height) @ rows
    return _rounded(sums / ONE).astype(np.uint8)


def _resized_rows(pixels: np.ndarray, width: int) -> np.ndarray:
    """The first pass, `(height, 32)`, float64 whole numbers 0..255.

    In float32, with a bound for its error; what lies so near to a half that the error could
    decide the rounding is summed again, exactly.
    """
    weights = _single_weights(width)
    sums = np.empty((len(pixels), SIDE), dtype=np.float32)
    step = max(BLOCK_PIXELS // width, 1)
    for first in range(0, len(pixels), step):
        block = pixels[first : first + step].astype(np.float32)
        np.matmul(block, weights, out=sums[first : first + step])
    # n terms, rounded n times: |error| <= n u sum|w x| (Higham 2002, 3.1), and Lanczos weights
    # sum up to less than 1.5 in magnitude; one more rounding for the half that is added.
    terms = 6 * max(width / SIDE, 1) + 3
    bound = terms * 2.0**-24 * 255 * 1.5
    sums += np.float32(0.5)
    rows = np.floor(sums)
    sums -= rows
    sums -= np.float32(0.5)
    doubtful = np.flatnonzero(np.abs(sums) > np.float32(0.5 - bound))
    answer = np.clip(rows, 0, 255).astype(np.float64)
    if len(doubtful):
        y, x = np.divmod(doubtful, SIDE)
        exact = np.einsum("ij,ij->i", pixels[y].astype(np.float64), _weights(width)[x])
        answer[y, x] = _rounded(exact / ONE)
    return answer


def _rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest whole number, halves up, cut to 0..255."""
    return np.clip(np.floor(values + 0.5), 0, 255)


@lru_cache(64)
def _single_weights(length: int) -> np.ndarray:
    return np.ascontiguousarray((_weights(length) / ONE).T.astype(np.float32))


@lru_cache(64)
def _weights(length: int) -> np.ndarray:
    """Pillow's Lanczos weights from `length` pixels to 32, `(32, length)`, whole multiples of 1.

    A weight of 1 is 2^22. They are float64, in which all sums of them with pixels are exact.
    """
    scale = length / SIDE
    stretch = max(scale, 1.0)
    weights = np.zeros((SIDE, length))
    for target in range(SIDE):
        center = (target + 0.5) * scale
        first = max(int(center - 3 * stretch + 0.5), 0)
        last = min(int(center + 3 * stretch + 0.5), length)
        taps = [_lanczos((x - center + 0.5) / stretch) for x in range(first, last)]
        total = 0.0
        for tap in taps:
            total += tap
        for x, tap in enumerate(taps, first):
            weight = tap / total
            weights[target, x] = int(weight * ONE + (0.5 if weight >= 0 else -0.5))
    return weights


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0
