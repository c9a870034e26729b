"""Test-time augmentation: an image's crops, mirror images and views as one embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Crops are cut from a square of this share of the side, as the usual 256 for 224 pixels.
CROP_MARGIN = 8 / 7


def larger_side(size: int) -> int:
    """Side of the square that crops of `size` are cut from, even, in pixels."""
    return 2 * round(size * CROP_MARGIN / 2)


def mean_of_copies(
    embed: Callable[[Tensor], Tensor], pixels: Tensor, size: int, flip: bool
) -> Tensor:
    """Test-time augmentation of a view: the mean of its copies' unit vectors, at length 1, float32.

    Args:
        embed: gives the unit vectors.
        pixels: `(N, 3, side, side)`; four corners and the middle are cut out of a `side` above
            `size`, as in Krizhevsky et al. 2012, section 4.1.
        size: of each copy, pixels.
        flip: whether each is also mirrored.
    """
    rest = pixels.shape[-1] - size
    corners = [(0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)]
    copies = [pixels[..., y : y + size, x : x + size] for y, x in (corners if rest else [(0, 0)])]
    copies += [copy.flip(-1) for copy in copies] if flip else []
    return mean_of_units([embed(copy).float() for copy in copies])


def mean_of_units(vectors: Sequence[Tensor]) -> Tensor:
    """The mean of unit vectors `(N, dimension)`, at length 1; one alone stays as it is."""
    if len(vectors) == 1:
        return vectors[0]
    return F.normalize(torch.stack(list(vectors)).mean(dim=0), dim=1)
