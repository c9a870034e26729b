"""Perceptual hashes of photos, equal to those of the packages `imagehash` and `imagededup`.

pHash: grey, 32 x 32 pixels, the 8 x 8 lowest frequencies of its cosine transform, and for each
whether it is above their median (N. Krawetz, "Looks Like It", hackerfactor.com, 2011). Two photos
of which one is a resized, recompressed or slightly retouched copy differ in few of the 64 bits.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from visual_search.cores import available_cores
from visual_search.dataset_info import read_each
from visual_search.grey_square import SIDE, square_of_image, square_of_jpeg
from visual_search.images import MAX_DECODED_PIXELS, UnreadableImage, decode_image

FREQUENCIES = 8
Kind = Literal["imagehash", "imagededup"]


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
    quick = square_of_jpeg(data) if kind == "imagehash" else None
    if quick is not None:
        return int(phash(quick[0][None])[0]), quick[1]
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_DECODED_PIXELS:
            raise UnreadableImage(f"{image.width} x {image.height} pixels are too many to decode")
        image.load()
        square = square_of_image(image) if kind == "imagehash" else _imagededup_square(image)
    except UnreadableImage:
        raise
    except Exception:  # decode_image says in words what is wrong
        image = decode_image(data)
        square = square_of_image(image)
    return int(phash(square[None], kind)[0]), image.size


def hash_photos(paths: Iterable[Path], kind: Kind = "imagehash") -> Iterator[int | UnreadableImage]:
    """The hash of each photo in turn, or why there is none, read by a thread on each core."""
    yield from read_each(paths, lambda path: photo_hash(path, kind), available_cores())


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
