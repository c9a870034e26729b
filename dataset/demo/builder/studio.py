"""Seller photos: one product on a white sweep, even light, a soft shadow under it."""

import numpy as np

from dataset.demo.builder import camera, meshes
from dataset.demo.builder.catalogue import Product, stable_seed
from dataset.demo.builder.rendering import Lights, Scene, shoot
from dataset.demo.builder.rooms import plain_floor
from dataset.demo.builder.views import frame_box, turned

LONGEST_SIDE = 320
ANGLE = 26.0
ANGLES = [(28.0, 14.0), (-32.0, 20.0), (0.0, 6.0), (55.0, 10.0), (-15.0, 35.0), (180.0, 15.0)]
FLAT_SHARE, LOW_SHARE = 0.12, 0.5


def seller_photo(product: Product, index: int) -> np.ndarray:
    """The catalogue photo number `index`: (height, width, 3) uint8, longest side LONGEST_SIDE."""
    rng = np.random.default_rng(stable_seed("seller", product.key, index))
    model = meshes.load(product)
    yaw, lift = _angle(rng, product, index)
    model.place(0, 0, 0, 0)
    low, high = meshes.bounds(model.actors)
    fill = float(rng.uniform(0.86, 0.94))
    view = frame_box(low, high, yaw, lift, _frame(rng, high - low), fill, ANGLE, fine=True)
    floor = plain_floor(40 * float(np.linalg.norm(high - low)))
    key = [rng.uniform(-0.9, 0.9), 1.6, 0.5]
    lights = Lights(
        key_direction=turned(key, yaw),
        key_colour=np.full(3, rng.uniform(0.42, 0.5)),
        fills=[
            (turned([0.1, 0.15, 1.0], yaw), np.full(3, 0.48)),
            (turned([-key[0], 0.3, 0.4], yaw), np.full(3, 0.24)),
            (np.array([0.0, 1.0, 0.0]), np.full(3, 0.14)),
        ],
        softness=float(rng.uniform(0.05, 0.09)),
    )
    shot = shoot(Scene(model.actors, surfaces=[floor]), view, lights)
    assert shot is not None
    strength = float(rng.uniform(0.5, 1.0))
    return camera.studio_finish(rng, shot.colour, shot.mask, shot.distance, strength)


def _angle(rng: np.random.Generator, product: Product, index: int) -> tuple[float, float]:
    """Camera's turn and lift in degrees; flat things are shot from above, wall things straight."""
    width, height, depth = product.size_cm
    turn, lift = ANGLES[index % 3] if rng.random() < 0.8 else ANGLES[rng.integers(len(ANGLES))]
    if height < FLAT_SHARE * max(width, depth):
        lift = float(rng.uniform(45, 75))
    elif height < LOW_SHARE * max(width, depth):
        lift = float(rng.uniform(22, 42))
    elif depth < FLAT_SHARE * max(width, height):
        turn, lift = turn * 0.6 if abs(turn) < 90 else 0.0, lift * 0.6
    return turn + float(rng.normal(0, 5)), lift + float(rng.normal(0, 3))


def _frame(rng: np.random.Generator, extent: np.ndarray) -> tuple[int, int]:
    """Photo size: square mostly, upright or oblong where the product is."""
    ratio = float(max(extent[0], extent[2]) / max(extent[1], 1e-6))
    if ratio < 0.6 and rng.random() < 0.7:
        return LONGEST_SIDE * 3 // 4, LONGEST_SIDE
    if ratio > 1.7 and rng.random() < 0.7:
        return LONGEST_SIDE, LONGEST_SIDE * 3 // 4
    return LONGEST_SIDE, LONGEST_SIDE
