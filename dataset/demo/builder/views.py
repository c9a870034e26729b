"""Camera placement: a view that frames a box from a given side."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class View:
    """Where the camera stands (cm), what it looks at, roll and vertical angle in degrees.

    A fine view is rendered at twice the size and shrunk; others only have their edges smoothed,
    which is enough for photos that get blurred anyway and takes a third of the time.
    """

    position: np.ndarray
    target: np.ndarray
    roll: float
    angle: float
    width: int
    height: int
    fine: bool = False


def turned(vector: np.ndarray, degrees: float) -> np.ndarray:
    """The vector turned about the vertical axis."""
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    return turn @ vector


def frame_box(
    low: np.ndarray,
    high: np.ndarray,
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
    ahead = turned(np.array([0, np.sin(lift_r), np.cos(lift_r)]), turn)
    side = turned(np.array([1.0, 0, 0]), turn)
    up = np.cross(ahead, side)
    centre = (low + high) / 2
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    offsets = low + corners * (high - low) - centre
    half_v = np.tan(np.radians(angle / 2)) * fill
    half_h = half_v * size[0] / size[1]
    depth = offsets @ ahead
    distance = max(
        float((depth + np.abs(offsets @ side) / half_h).max()),
        float((depth + np.abs(offsets @ up) / half_v).max()),
    )
    return View(centre + ahead * distance, centre, 0.0, angle, *size, fine)
