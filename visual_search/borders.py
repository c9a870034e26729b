"""White borders of catalogue photos: where the product's picture begins and ends."""

from __future__ import annotations

import numpy as np

# JPEG leaves white a few steps below 255.
WHITE = 245
# A row or column counts as content from this share of pixels that are not white: dust does not.
CONTENT_SHARE = 0.004
# What is left must be at least this share of each side, or the photo is kept as it is.
LEAST_SHARE = 0.1
# Of the content's longer side, left round it on each side.
MARGIN = 0.02


def content_region(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The part of a photo inside its white border.

    Args:
        pixels: `(height, width, 3)`, uint8, RGB.

    Returns:
        `left, top, right, bottom`, right and bottom excluded, never empty: the whole photo
        where it has no white border, is all white, or shows next to nothing.
    """
    height, width = pixels.shape[:2]
    marked = pixels.min(axis=2) < WHITE
    rows = np.flatnonzero(marked.sum(axis=1) > CONTENT_SHARE * width)
    columns = np.flatnonzero(marked.sum(axis=0) > CONTENT_SHARE * height)
    whole = (0, 0, width, height)
    if not len(rows) or not len(columns):
        return whole
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    if bottom - top < LEAST_SHARE * height or right - left < LEAST_SHARE * width:
        return whole
    margin = round(MARGIN * max(bottom - top, right - left))
    return (
        max(int(left) - margin, 0),
        max(int(top) - margin, 0),
        min(int(right) + margin, width),
        min(int(bottom) + margin, height),
    )
