"""Settings of the user photos: the floor, walls, table and things on the wall, no products."""

from dataclasses import dataclass

import numpy as np
import vtk

from dataset.demo.builder import surfaces, textures
from dataset.demo.builder.catalogue import Product

TABLE_HEIGHT = 75.0
TABLE_LIMIT = 56.0
HANGING = 8.0


@dataclass(frozen=True)
class Room:
    """Actors of the setting, height (cm) of what the product stands on, background colour."""

    actors: list[vtk.vtkActor]
    base: float
    background: tuple[float, float, float]


def setting_of(product: Product) -> str:
    """Where such a product is met: "table", "floor", "outdoor" or "wall"."""
    width, height, depth = product.size_cm
    if product.elevation_cm > HANGING and product.longest_cm < 260:
        return "wall"
    flat = height < 6 and max(width, depth) < 130
    if product.longest_cm <= TABLE_LIMIT or flat:
        return "table"
    return "outdoor" if product.category in ("Exterior", "Vehicles") else "floor"


def _vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def _upright(
    x0: float, x1: float, y0: float, y1: float, z: float, surface: textures.Surface
) -> vtk.vtkActor:
    """A wall facing +z."""
    return surfaces.plane(
        _vector(x0, y0, z), _vector(x1 - x0, 0, 0), _vector(0, y1 - y0, 0), surface
    )


def _level(
    x0: float, x1: float, z0: float, z1: float, y: float, surface: textures.Surface
) -> vtk.vtkActor:
    """A floor facing up."""
    return surfaces.plane(
        _vector(x0, y, z1), _vector(x1 - x0, 0, 0), _vector(0, 0, z0 - z1), surface
    )


def _picture(rng: np.random.Generator, x: float, z: float, floor: float) -> list[vtk.vtkActor]:
    """A framed picture on the back wall, its left edge at x."""
    width, height = rng.uniform(25, 90, 2)
    y = floor + rng.uniform(110, 160)
    picture = textures.paint(rng, textures.TABLES + textures.GROUNDS)
    frame = rng.uniform(0.05, 0.9, 3) * rng.uniform(0.3, 1)
    low, high = _vector(x - 3, y - 3, z), _vector(x + width + 3, y + height + 3, z + 1.5)
    return [
        surfaces.slab(low, high, frame),
        _upright(x, x + width, y, y + height, z + 1.8, picture),
    ]


def _window(rng: np.random.Generator, x: float, z: float, floor: float) -> list[vtk.vtkActor]:
    """A window of two panes."""
    width, height = rng.uniform(70, 140, 2)
    y = floor + rng.uniform(80, 110)
    white = np.full(3, rng.uniform(0.75, 1.0))
    pane = rng.uniform(0.7, 1.0) * _vector(0.85, 0.93, 1.0)
    low, high = _vector(x - 5, y - 5, z), _vector(x + width + 5, y + height + 5, z + 2)
    middle = x + width / 2
    return [
        surfaces.slab(low, high, white),
        surfaces.slab(_vector(x, y, z), _vector(x + width, y + height, z + 2.5), pane),
        surfaces.slab(_vector(middle - 3, y, z), _vector(middle + 3, y + height, z + 3), white),
    ]


def _door(rng: np.random.Generator, x: float, z: float, floor: float) -> list[vtk.vtkActor]:
    """A closed door in its frame."""
    colour = textures.paint(rng, textures.WALLS).pixels.mean(axis=(0, 1)) * rng.uniform(0.6, 1)
    return [
        surfaces.slab(_vector(x - 7, floor, z), _vector(x + 97, floor + 212, z + 2), colour * 0.85),
        surfaces.slab(_vector(x, floor, z), _vector(x + 90, floor + 205, z + 3), colour),
    ]


def _indoor_shell(
    rng: np.random.Generator, floor: float, back: float, reach: float
) -> list[vtk.vtkActor]:
    """Floor at height `floor`, back wall at z = -back, maybe a corner, skirting, decorations."""
    wide, tall = 4 * reach + 600, 600.0 + 3 * reach
    parts = [
        _level(-wide, wide, -back, wide, floor, textures.paint(rng, textures.FLOORS)),
        _upright(-wide, wide, floor, floor + tall, -back, textures.paint(rng, textures.WALLS)),
    ]
    if rng.random() < 0.6:
        top = floor + rng.uniform(6, 14)
        colour = np.full(3, rng.uniform(0.3, 1.0))
        parts.append(
            surfaces.slab(_vector(-wide, floor, -back), _vector(wide, top, 1.5 - back), colour)
        )
    for _ in range(int(rng.integers(0, 3))):
        decoration = (_picture, _window, _door)[rng.integers(3)]
        parts.extend(decoration(rng, rng.uniform(-150, 150), -back, floor))
    if rng.random() < 0.35:
        x = float(rng.choice([-1, 1])) * rng.uniform(0.9, 2.0) * (reach + 60)
        origin, along = _vector(x, floor, -back), _vector(0, 0, wide)
        side = textures.paint(rng, textures.WALLS)
        parts.append(surfaces.plane(origin, along, _vector(0, tall, 0), side))
    if rng.random() < 0.3:
        half = rng.uniform(0.7, 1.6, 2) * (reach + 30)
        rug = textures.paint(rng, [(textures.carpet, 0.0)])
        parts.append(_level(-half[0], half[0], -min(half[1], back), half[1], floor + 0.8, rug))
    return parts


def _table(rng: np.random.Generator, product: Product) -> Room:
    """A table top at height 0 with the room around it."""
    half_x = max(rng.uniform(35, 110), 0.9 * product.longest_cm)
    half_z = max(rng.uniform(28, 60), 0.8 * product.longest_cm)
    gap = 2.0 if rng.random() < 0.45 else rng.uniform(20, 220)
    top = textures.paint(rng, textures.TABLES)
    edge = top.pixels.mean(axis=(0, 1)) * rng.uniform(0.5, 0.9)
    parts = _indoor_shell(rng, -TABLE_HEIGHT, half_z + gap, 150.0)
    parts.append(_level(-half_x, half_x, -half_z, half_z, 0.0, top))
    low, high = _vector(-half_x, -4, -half_z), _vector(half_x, -0.05, half_z)
    parts.append(surfaces.slab(low, high, edge))
    if rng.random() < 0.25:
        cloth = textures.paint(rng, [(textures.cloth, 0.0), (textures.paper, 0.05)])
        half = rng.uniform(0.8, 1.6, 2) * max(product.longest_cm, 10)
        parts.append(_level(-half[0], half[0], -half[1], half[1], 0.15, cloth))
    return Room(parts, 0.0, (0.55, 0.53, 0.5))


def _outdoor(rng: np.random.Generator, product: Product) -> Room:
    """Ground under the sky, often with a wall, hedge or fence behind."""
    reach = product.longest_cm
    wide = 12 * reach + 1500
    parts = [_level(-wide, wide, -wide, wide, 0.0, textures.paint(rng, textures.GROUNDS))]
    if rng.random() < 0.8:
        back = reach * rng.uniform(0.7, 2.5) + 40
        tall = rng.uniform(150, 350) + reach * rng.uniform(0.3, 2)
        wall = textures.paint(rng, textures.OUTDOOR_WALLS)
        parts.append(_upright(-wide, wide, 0, tall, -back, wall))
    sky = rng.uniform(0.75, 1.0) * _vector(0.82, 0.9, 1.0) * rng.uniform(0.92, 1.05, 3)
    return Room(parts, 0.0, (float(sky[0]), float(sky[1]), float(sky[2])))


def build_room(rng: np.random.Generator, product: Product) -> Room:
    """The setting for one photo of the product, which will stand on (0, base, 0)."""
    setting = setting_of(product)
    if setting == "table":
        return _table(rng, product)
    if setting == "outdoor":
        return _outdoor(rng, product)
    depth = product.size_cm[2]
    if setting == "wall":
        # The back of the product touches the wall; lamps from the ceiling hang a little off it.
        hangs = product.elevation_cm > 150 and product.category == "Lights"
        back = depth / 2 + (rng.uniform(20, 120) if hangs else 0.3)
        return Room(
            _indoor_shell(rng, 0.0, back, product.longest_cm), product.elevation_cm, (1, 1, 1)
        )
    back = product.longest_cm * rng.uniform(0.55, 1.4) + rng.uniform(0, 80)
    return Room(_indoor_shell(rng, 0.0, back, product.longest_cm), 0.0, (0.9, 0.9, 0.88))
