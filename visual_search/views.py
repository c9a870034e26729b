"""Test-time augmentation: a photo seen mirrored and in crops, its embedding the mean of all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_search.inference import Answer

# Crops are cut from a square of this share of the side, as the usual 256 for 224 pixels.
LARGER = 8 / 7


def larger_side(size: int) -> int:
    """Side of the square that crops of `size` are cut from, even, in pixels."""
    return 2 * round(size * LARGER / 2)


def views_of(pixels: Tensor, size: int, flip: bool) -> list[Tensor]:
    """All views of a batch.

    Args:
        pixels: `(N, 3, side, side)`; four corners and the middle are cut out of a `side` above
            `size`, as in Krizhevsky et al. 2012, section 4.1.
        size: of each view, pixels.
        flip: whether each is also mirrored.
    """
    rest = pixels.shape[-1] - size
    corners = [(0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)]
    views = [pixels[..., y : y + size, x : x + size] for y, x in (corners if rest else [(0, 0)])]
    return views + [view.flip(-1) for view in views] if flip else views


def mean_embedding(answer: Answer, views: list[Tensor]) -> Tensor:
    """The mean of the views' unit vectors, at length 1, `(N, dimension)`, float32."""
    if len(views) == 1:
        return answer(views[0]).float()
    return F.normalize(torch.stack([answer(view).float() for view in views]).mean(dim=0), dim=1)
