"""User photos: a product in a setting, among other products, as a phone sees it."""

import numpy as np

from dataset.demo.builder import camera, clutter, meshes, rooms
from dataset.demo.builder.catalogue import Product, stable_seed
from dataset.demo.builder.rendering import Lights, Scene, shoot
from dataset.demo.builder.views import (
    Box,
    View,
    box_of_mask,
    frame_box,
    share_in_frame,
    turned,
    widened,
)
from visual_search.common.errors import UserError

FRAMES = [(360, 270), (360, 270), (270, 360), (270, 360), (312, 312), (372, 210)]
ATTEMPTS = 8
LEAST_VISIBLE = 0.3
LEAST_IN_FRAME = 0.55
LEAST_AREA = 0.012
LEAST_SIDE = 18


def user_photo(
    product: Product, index: int, products: list[Product]
) -> tuple[np.ndarray, Box, int]:
    """The phone photo number `index` of the product, among others of `products` on its side.

    Returns:
        Pixels (height, width, 3) uint8; a box round what is seen of the product as a person draws
        it, up to 6 % outside, at times 1 % inside; the JPEG's quality.

    Raises:
        UserError: for a product that no attempt shows.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng(stable_seed("user", product.key, index, attempt))
        easy, last = attempt >= ATTEMPTS // 2, attempt == ATTEMPTS - 1
        model = meshes.load(product)
        room = rooms.build_room(rng, product)
        model.place(0, room.base, 0, _yaw(rng, product))
        box = meshes.bounds(model.actors)
        view, azimuth = _view(rng, product, box, easy)
        others = [] if easy else clutter.strew(rng, product, products, azimuth, room.base)
        actors = [actor for other in others for actor in other.actors]
        scene = Scene(model.actors, actors, room.actors, room.background)
        if last or share_in_frame(box, view) >= LEAST_IN_FRAME:
            lights = _lights(rng, azimuth, product)
            shot = shoot(scene, view, lights, _anything if last else _usable)
            if shot is not None:
                break
    else:
        raise UserError(f"{product.key} cannot be seen in any scene: drop it in curation.csv")
    depth_blur = float(rng.uniform(0, 5.0 if product.setting == "table" else 1.5))
    focus = float(np.linalg.norm(view.target - view.position))
    colour = camera.metered(shot.colour, shot.mask)
    pixels, quality = camera.phone_photo(rng, colour, shot.distance, focus, depth_blur)
    tight = box_of_mask(shot.mask > 0.5) or (0, 0, view.width, view.height)
    return pixels, widened(rng, tight, view.width, view.height, -0.01, 0.06), quality


def _usable(mask: np.ndarray, silhouette: np.ndarray) -> bool:
    """Enough of the product visible, and not tiny or a mere sliver."""
    seen, whole = float(mask.sum()), float(silhouette.sum())
    box = box_of_mask(mask > 0.5)
    return (
        box is not None
        and min(box[2:]) >= LEAST_SIDE
        and seen >= LEAST_VISIBLE * whole
        and seen >= LEAST_AREA * mask.size
    )


def _anything(mask: np.ndarray, silhouette: np.ndarray) -> bool:
    """The last attempt takes thin things that never fill a box, if they show at all."""
    return bool((mask > 0.5).any()) and bool(silhouette.any())


def _yaw(rng: np.random.Generator, product: Product) -> float:
    """How far the product is turned from facing the photographer, degrees."""
    if product.setting == "wall":
        return 0.0
    draw = rng.random()
    if draw < 0.48:
        return float(rng.uniform(-65, 65))
    if draw < 0.83:
        return float(rng.choice([-1, 1]) * rng.uniform(65, 130))
    return float(rng.uniform(130, 230))


def _view(
    rng: np.random.Generator, product: Product, bounds: np.ndarray, easy: bool
) -> tuple[View, float]:
    """A camera for the product in its bounds (2, 3), and its azimuth in degrees (0: from ahead)."""
    setting = product.setting
    low, high = bounds
    extent = high - low
    lift = {
        "table": rng.uniform(10, 66),
        "floor": rng.uniform(6, 52),
        "outdoor": rng.uniform(4, 30),
        "wall": rng.uniform(-28, 20),
    }[setting]
    from_above = setting == "table" and rng.random() < 0.22
    if from_above or (setting != "wall" and extent[1] < 0.12 * max(extent[0], extent[2])):
        lift = rng.uniform(40, 84)
    azimuth = float(rng.uniform(-48, 48) if setting == "wall" else rng.uniform(-28, 28))
    fill = rng.uniform(0.3, 0.85) if easy or rng.random() < 0.8 else rng.uniform(0.95, 1.4)
    size = FRAMES[rng.integers(len(FRAMES))]
    angle = float(rng.uniform(42, 62))
    view = frame_box(low, high, azimuth, float(lift), size, float(fill), angle)
    roll = rng.normal(0, 4)
    if rng.random() < 0.2:
        roll = rng.uniform(-25, 25)
    if from_above and rng.random() < 0.5:
        roll = rng.uniform(-180, 180)
    _, right, up = view.axes()
    distance = np.linalg.norm(view.target - view.position)
    room = 0.5 * (1.1 - min(fill, 1.0)) * distance * np.tan(np.radians(angle / 2))
    aim = right * rng.uniform(-1, 1) * room + up * rng.uniform(-1, 1) * room
    return View(view.position + aim, view.target + aim, float(roll), angle, *size), azimuth


def _lights(rng: np.random.Generator, azimuth: float, product: Product) -> Lights:
    """A lamp or window as key light, the room's bounce as fill; warm to cold, 0..1 each."""
    outdoor = product.setting == "outdoor"
    bearing = np.radians(azimuth + rng.uniform(-110, 110))
    height = np.tan(np.radians(rng.uniform(25, 75)))
    key = rng.uniform(0.35, 0.85)
    fill = rng.uniform(0.85, 1.1) - key
    warm = rng.normal(0, 0.17)
    tone = np.array([1 + warm, 1.0, 1 - warm])
    other = np.array([1 - 0.5 * warm, 1.0, 1 + 0.5 * warm]) * fill
    fills = [
        (np.array([0.0, 1.0, 0.1]), 0.42 * other),
        (turned([0.6, 0.3, 1.0], azimuth), 0.48 * other),
        (turned([-1.0, -0.1, 0.5], azimuth), 0.38 * other),
    ]
    direction = np.array([np.sin(bearing), height, np.cos(bearing)])
    softness = rng.uniform(0.004, 0.015) if outdoor else rng.uniform(0.008, 0.05)
    return Lights(direction, key * tone, fills, float(softness))
