"""Camera placement: a view that frames a box from a given side; boxes round what a view shows."""

from dataclasses import dataclass
from itertools import product

import numpy as np

Array = np.ndarray
Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


@dataclass(frozen=True)
class View:
    """Where the camera stands (cm), what it looks at, roll and vertical angle in degrees.

    A fine view is rendered at twice the size and shrunk; others only have their edges smoothed,
    which is enough for photos that get blurred anyway and takes a third of the time.
    """

    position: Array
    target: Array
    roll: float
    angle: float
    width: int
    height: int
    fine: bool = False

    def axes(self) -> tuple[Array, Array, Array]:
        """Unit vectors ahead, to the right and up, as without roll."""
        line = self.target - self.position
        right = np.cross(line, [0.0, 1.0, 0.0])
        right /= max(float(np.linalg.norm(right)), 1e-9)
        ahead = line / np.linalg.norm(line)
        return ahead, right, np.cross(right, ahead)


def turned(vector: Array | list[float], degrees: float) -> Array:
    """The vector turned about the vertical axis."""
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    return turn @ np.asarray(vector)


def _corners(low: Array, high: Array) -> Array:
    """The eight corners (8, 3) of a box."""
    return low + np.array(list(product((0, 1), repeat=3))) * (high - low)


def frame_box(
    low: Array,
    high: Array,
    turn: float,
    lift: float,
    size: tuple[int, int],
    fill: float,
    angle: float,
    fine: bool = False,
) -> View:
    """A view of the box low..high (cm) that spans `fill` of the frame in its tighter direction.

    turn and lift (degrees) say from where: 0, 0 is straight at the front (+z).
    """
    lift_r = np.radians(lift)
    ahead = turned([0, np.sin(lift_r), np.cos(lift_r)], turn)
    side = turned([1.0, 0, 0], turn)
    up = np.cross(ahead, side)
    centre = (low + high) / 2
    offsets = _corners(low, high) - centre
    half_v = np.tan(np.radians(angle / 2)) * fill
    half_h = half_v * size[0] / size[1]
    depth = offsets @ ahead
    distance = max(
        float((depth + np.abs(offsets @ side) / half_h).max()),
        float((depth + np.abs(offsets @ up) / half_v).max()),
    )
    return View(centre + ahead * distance, centre, 0.0, angle, *size, fine)


def share_in_frame(bounds: Array, view: View) -> float:
    """Share of the projected corners' rectangle that lies in the frame; bounds (2, 3) in cm."""
    ahead, right, up = view.axes()
    offset = _corners(*bounds) - view.position
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


def box_of_mask(mask: Array) -> Box | None:
    """The box of the true pixels of a (height, width) mask; None if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def widened(
    rng: np.random.Generator, box: Box, width: int, height: int, least: float, most: float
) -> Box:
    """Each side moved outwards by least..most of the box's size, within the image."""
    x, y, w, h = box
    left, right = rng.uniform(least, most, 2) * w
    top, bottom = rng.uniform(least, most, 2) * h
    x0, y0 = max(0, round(x - left)), max(0, round(y - top))
    x1, y1 = min(width, round(x + w + right)), min(height, round(y + h + bottom))
    return x0, y0, x1 - x0, y1 - y0
