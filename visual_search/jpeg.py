"""The short way from a plain JPEG to RGB pixels; whatever is odd is left to the long way.

Nine of ten photos are plain JPEGs. libjpeg-turbo through `simplejpeg` gives them as an array
about twice as fast as PIL, which unpacks to four bytes a pixel and packs again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

try:
    import simplejpeg
except ImportError:  # PIL reads everything that this module does
    simplejpeg = None

_PLAIN_COLOURS = ("Gray", "YCbCr", "RGB")


def decode_plain_jpeg(
    data: bytes, needed: Callable[[int, int], tuple[int, int]], max_pixels: int
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Decode an undamaged JPEG of grey or three colours at 1/1, or at most 1/2, of its size.

    Args:
        data: the whole file.
        needed: of the stored width and height, the width and height not to go below; it is
            called before anything is decoded.
        max_pixels: stored; a larger photo is left to the long way.

    Returns:
        Pixels `(height, width, 3)`, uint8, RGB, and the stored width and height. None where
        the file is anything else, or is damaged.
    """
    if simplejpeg is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _PLAIN_COLOURS or width * height > max_pixels:
            return None
        least_width, least_height = needed(width, height)
        pixels = simplejpeg.decode_jpeg(
            data,
            min_width=least_width,
            min_height=least_height,
            # Scales between 1/2 and 1 take longer than the whole photo.
            min_factor=2,
        )
    except ValueError:  # strict: also for what a decoder could guess
        return None
    return pixels, (width, height)
