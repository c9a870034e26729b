"""Settings of the user photos: the floor, walls, table and things on the wall, no products."""

from dataclasses import dataclass

import numpy as np
import vtk

from dataset.demo.builder import textures
from dataset.demo.builder.catalogue import Product
from dataset.demo.builder.meshes import image_texture, shaded
from dataset.demo.builder.textures import Surface, paint

TABLE_HEIGHT = 75.0
Corner = tuple[float, float, float]


@dataclass(frozen=True)
class Room:
    """Actors of the setting, height (cm) of what the product stands on, background colour."""

    actors: list[vtk.vtkActor]
    base: float
    background: tuple[float, float, float]


def _parallelogram(origin: Corner, along: Corner, across: Corner) -> vtk.vtkPolyData:
    source = vtk.vtkPlaneSource()
    source.SetOrigin(*origin)
    source.SetPoint1(*np.add(origin, along))
    source.SetPoint2(*np.add(origin, across))
    source.Update()
    return source.GetOutput()


def _plane(origin: Corner, along: Corner, across: Corner, surface: Surface) -> vtk.vtkActor:
    """A tiled parallelogram: origin and its two edge vectors in cm."""
    mapping = vtk.vtkTransformTextureCoords()
    mapping.SetInputData(_parallelogram(origin, along, across))
    mapping.SetScale(*(np.linalg.norm([along, across], axis=1) / surface.width_cm), 1)
    mapping.SetOrigin(0, 0, 0)
    mapping.Update()
    actor = shaded(mapping.GetOutput(), surface.shine, 25)
    actor.SetTexture(image_texture((surface.pixels * 255).astype(np.uint8)))
    return actor


def _upright(
    x0: float, x1: float, y0: float, y1: float, z: float, surface: Surface
) -> vtk.vtkActor:
    """A wall facing +z."""
    return _plane((x0, y0, z), (x1 - x0, 0, 0), (0, y1 - y0, 0), surface)


def _level(x0: float, x1: float, z0: float, z1: float, y: float, surface: Surface) -> vtk.vtkActor:
    """A floor facing up."""
    return _plane((x0, y, z1), (x1 - x0, 0, 0), (0, 0, z0 - z1), surface)


def _slab(
    x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, colour: np.ndarray
) -> vtk.vtkActor:
    """A box of one colour (0..1): table edge, skirting board, frame; all in cm."""
    source = vtk.vtkCubeSource()
    source.SetBounds(x0, x1, y0, y1, z0, z1)
    source.Update()
    actor = shaded(source.GetOutput(), 0.1, 25)
    actor.GetProperty().SetColor(*np.clip(colour, 0, 1))
    return actor


def plain_floor(side: float) -> vtk.vtkActor:
    """A white floor of side cm round the origin, at height 0."""
    corner = (-side / 2, 0, side / 2)
    actor = shaded(_parallelogram(corner, (side, 0, 0), (0, 0, -side)), 0.0, 25)
    actor.GetProperty().SetColor(1, 1, 1)
    return actor


def _picture(rng: np.random.Generator, x: float, z: float, floor: float) -> list[vtk.vtkActor]:
    """A framed picture on the back wall, its left edge at x."""
    width, height = rng.uniform(25, 90, 2)
    y = floor + rng.uniform(110, 160)
    picture = paint(rng, textures.TABLES + textures.GROUNDS)
    frame = rng.uniform(0.05, 0.9, 3) * rng.uniform(0.3, 1)
    return [
        _slab(x - 3, x + width + 3, y - 3, y + height + 3, z, z + 1.5, frame),
        _upright(x, x + width, y, y + height, z + 1.8, picture),
    ]


def _window(rng: np.random.Generator, x: float, z: float, floor: float) -> list[vtk.vtkActor]:
    """A window of two panes."""
    width, height = rng.uniform(70, 140, 2)
    y = floor + rng.uniform(80, 110)
    white = np.full(3, rng.uniform(0.75, 1.0))
    pane = rng.uniform(0.7, 1.0) * np.array([0.85, 0.93, 1.0])
    middle = x + width / 2
    return [
        _slab(x - 5, x + width + 5, y - 5, y + height + 5, z, z + 2, white),
        _slab(x, x + width, y, y + height, z, z + 2.5, pane),
        _slab(middle - 3, middle + 3, y, y + height, z, z + 3, white),
    ]


def _door(rng: np.random.Generator, x: float, z: float, floor: float) -> list[vtk.vtkActor]:
    """A closed door in its frame."""
    colour = paint(rng, textures.WALLS).pixels.mean(axis=(0, 1)) * rng.uniform(0.6, 1)
    return [
        _slab(x - 7, x + 97, floor, floor + 212, z, z + 2, colour * 0.85),
        _slab(x, x + 90, floor, floor + 205, z, z + 3, colour),
    ]


def _indoor_shell(
    rng: np.random.Generator, floor: float, back: float, reach: float
) -> list[vtk.vtkActor]:
    """Floor at height `floor`, back wall at z = -back, maybe a corner, skirting, decorations."""
    wide, tall = 4 * reach + 600, 600.0 + 3 * reach
    parts = [
        _level(-wide, wide, -back, wide, floor, paint(rng, textures.FLOORS)),
        _upright(-wide, wide, floor, floor + tall, -back, paint(rng, textures.WALLS)),
    ]
    if rng.random() < 0.6:
        top = floor + rng.uniform(6, 14)
        colour = np.full(3, rng.uniform(0.3, 1.0))
        parts.append(_slab(-wide, wide, floor, top, -back, 1.5 - back, colour))
    for _ in range(int(rng.integers(0, 3))):
        decoration = (_picture, _window, _door)[rng.integers(3)]
        parts.extend(decoration(rng, rng.uniform(-150, 150), -back, floor))
    if rng.random() < 0.35:
        x = float(rng.choice([-1, 1])) * rng.uniform(0.9, 2.0) * (reach + 60)
        side = paint(rng, textures.WALLS)
        parts.append(_plane((x, floor, -back), (0, 0, wide), (0, tall, 0), side))
    if rng.random() < 0.3:
        half = rng.uniform(0.7, 1.6, 2) * (reach + 30)
        rug = paint(rng, [(textures.carpet, 0.0)])
        parts.append(_level(-half[0], half[0], -min(half[1], back), half[1], floor + 0.8, rug))
    return parts


def _table(rng: np.random.Generator, longest: float) -> list[vtk.vtkActor]:
    """A table top at height 0 with the room around it."""
    half_x = max(rng.uniform(35, 110), 0.9 * longest)
    half_z = max(rng.uniform(28, 60), 0.8 * longest)
    gap = 2.0 if rng.random() < 0.45 else rng.uniform(20, 220)
    top = paint(rng, textures.TABLES)
    edge = top.pixels.mean(axis=(0, 1)) * rng.uniform(0.5, 0.9)
    parts = _indoor_shell(rng, -TABLE_HEIGHT, half_z + gap, 150.0)
    parts.append(_level(-half_x, half_x, -half_z, half_z, 0.0, top))
    parts.append(_slab(-half_x, half_x, -4, -0.05, -half_z, half_z, edge))
    if rng.random() < 0.25:
        cloth = paint(rng, [(textures.cloth, 0.0), (textures.paper, 0.05)])
        half = rng.uniform(0.8, 1.6, 2) * max(longest, 10)
        parts.append(_level(-half[0], half[0], -half[1], half[1], 0.15, cloth))
    return parts


def _outdoor(rng: np.random.Generator, reach: float) -> Room:
    """Ground under the sky, often with a wall, hedge or fence behind."""
    wide = 12 * reach + 1500
    parts = [_level(-wide, wide, -wide, wide, 0.0, paint(rng, textures.GROUNDS))]
    if rng.random() < 0.8:
        back = reach * rng.uniform(0.7, 2.5) + 40
        tall = rng.uniform(150, 350) + reach * rng.uniform(0.3, 2)
        parts.append(_upright(-wide, wide, 0, tall, -back, paint(rng, textures.OUTDOOR_WALLS)))
    sky = rng.uniform(0.75, 1.0) * np.array([0.82, 0.9, 1.0]) * rng.uniform(0.92, 1.05, 3)
    return Room(parts, 0.0, (float(sky[0]), float(sky[1]), float(sky[2])))


def build_room(rng: np.random.Generator, product: Product) -> Room:
    """The setting for one photo of the product, which will stand on (0, base, 0)."""
    reach = product.longest_cm
    if product.setting == "table":
        return Room(_table(rng, reach), 0.0, (0.55, 0.53, 0.5))
    if product.setting == "outdoor":
        return _outdoor(rng, reach)
    if product.setting == "wall":
        # The back of the product touches the wall; lamps from the ceiling hang a little off it.
        hangs = product.elevation_cm > 150 and product.category == "Lights"
        back = product.size_cm[2] / 2 + (rng.uniform(20, 120) if hangs else 0.3)
        return Room(_indoor_shell(rng, 0.0, back, reach), product.elevation_cm, (1, 1, 1))
    back = reach * rng.uniform(0.55, 1.4) + rng.uniform(0, 80)
    return Room(_indoor_shell(rng, 0.0, back, reach), 0.0, (0.9, 0.9, 0.88))
