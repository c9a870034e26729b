"""Whether downloaded bytes are a photo worth keeping."""

from __future__ import annotations

import io

from PIL import Image

from visual_search.images import MAX_DECODED_PIXELS, UnreadableImage, decode_image

MIN_SIDE = 16
"""Pixels; a shop's server sends a single transparent pixel in place of a photo it lost."""


def photo_problem(data: bytes, *, whole: bool = False) -> str | None:
    """What is wrong with the bytes of a photo, None for nothing.

    Args:
        data: the whole file.
        whole: decode all of it, which finds a cut file; else only its beginning is read.
    """
    try:
        if whole:
            width, height = decode_image(data).size
        else:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except UnreadableImage as error:
        return str(error)
    except Exception:  # decoders raise anything; decode_image has the words for it
        return photo_problem(data, whole=True) or "not an image of a known format"
    if min(width, height) < MIN_SIDE:
        return f"{width} x {height} pixels are too few"
    if width * height > MAX_DECODED_PIXELS:
        return f"{width} x {height} pixels are too many to decode"
    return None
