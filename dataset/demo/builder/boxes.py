"""Boxes round products: from a mask, loosened as a person would draw, cropped with context."""

import numpy as np

from dataset.demo.builder.views import View

Box = tuple[int, int, int, int]


def box_of_mask(mask: np.ndarray) -> Box | None:
    """x, y, width, height of the true pixels of a (height, width) mask; None if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _widen(
    rng: np.random.Generator, box: Box, width: int, height: int, least: float, most: float
) -> Box:
    """Move each side outwards by least..most of the box's size, within the image."""
    x, y, w, h = box
    left, right = rng.uniform(least, most, 2) * w
    top, bottom = rng.uniform(least, most, 2) * h
    x0, y0 = max(0, round(x - left)), max(0, round(y - top))
    x1, y1 = min(width, round(x + w + right)), min(height, round(y + h + bottom))
    return x0, y0, x1 - x0, y1 - y0


def loosen(rng: np.random.Generator, box: Box, width: int, height: int) -> Box:
    """The box as a person draws it: up to 6 % outside, at times 1 % inside, within the image."""
    return _widen(rng, box, width, height, -0.01, 0.06)


def with_context(rng: np.random.Generator, box: Box, width: int, height: int) -> Box:
    """The box with 5-25 % of its surroundings on each side, within the image."""
    return _widen(rng, box, width, height, 0.05, 0.25)


def share_in_frame(bounds: np.ndarray, view: View) -> float:
    """Share of the projected corners' rectangle that lies in the frame; bounds (2, 3) in cm."""
    line = view.target - view.position
    ahead = line / np.linalg.norm(line)
    right = np.cross(ahead, [0.0, 1.0, 0.0])
    right /= max(float(np.linalg.norm(right)), 1e-9)
    up = np.cross(right, ahead)
    corners = np.array(
        [[x, y, z] for x in bounds[:, 0] for y in bounds[:, 1] for z in bounds[:, 2]]
    )
    offset = corners - view.position
    half = np.tan(np.radians(view.angle / 2)) * np.maximum(offset @ ahead, 1e-3)
    u, v = (offset @ right) / half, (offset @ up) / half
    roll = np.radians(view.roll)
    across = (u * np.cos(roll) - v * np.sin(roll)) * view.height / view.width
    down = u * np.sin(roll) + v * np.cos(roll)
    share = 1.0
    for values in (across, down):
        full = max(float(np.ptp(values)), 1e-9)
        inside = min(1.0, float(values.max())) - max(-1.0, float(values.min()))
        share *= max(0.0, inside) / full
    return share
