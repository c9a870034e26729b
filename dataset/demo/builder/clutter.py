"""Other products that lie about in a user photo, behind, beside and in front of the product."""

import numpy as np

from dataset.demo.builder import meshes
from dataset.demo.builder.catalogue import Product
from dataset.demo.builder.meshes import Model
from dataset.demo.builder.views import turned

MOST_MESH_BYTES = 300_000
TRIES = 6

Circle = tuple[float, float, float]


def strew(
    rng: np.random.Generator,
    product: Product,
    products: list[Product],
    azimuth: float,
    base: float,
) -> list[Model]:
    """Place up to five other products of fitting size, often in front of the product.

    It stands on (0, base, 0) cm; the camera's azimuth is in degrees.
    """
    fitting = _fitting(product, products)
    ground = 0.0 if product.setting == "wall" else base
    taken: list[Circle] = [(0.0, 0.0, 0.8 * _radius(product))]
    others: list[Model] = []
    chosen = {product.key}
    for number in range(int(rng.integers(1, 6)) if fitting else 0):
        other = fitting[rng.integers(len(fitting))]
        in_front = rng.random() < (0.75, 0.4)[min(number, 1)]
        low_enough = other.size_cm[1] < 1.3 * product.size_cm[1] + base - ground
        if other.key in chosen or (in_front and not low_enough):
            continue
        circle = _free_spot(rng, _radius(other), taken, azimuth, in_front)
        if circle:
            model = meshes.load(other)
            model.place(circle[0], ground, circle[1], float(rng.uniform(0, 360)))
            taken.append(circle)
            others.append(model)
            chosen.add(other.key)
    return others


def _fitting(product: Product, products: list[Product]) -> list[Product]:
    """Light meshes of the same side met in the same setting, no look-alikes, of a like size."""
    setting = "floor" if product.setting == "wall" else product.setting
    return [
        other
        for other in products
        if other.split == product.split
        and other.mesh_bytes < MOST_MESH_BYTES
        and other.look_alike != product.look_alike
        and other.setting == setting
        and 0.3 < other.longest_cm / product.longest_cm < 2.6
    ]


def _radius(product: Product) -> float:
    """Half the diagonal of the footprint, cm."""
    return float(np.hypot(product.size_cm[0], product.size_cm[2]) / 2)


def _free_spot(
    rng: np.random.Generator, radius: float, taken: list[Circle], azimuth: float, in_front: bool
) -> Circle | None:
    """A circle x, z, radius (cm) that hardly overlaps the taken ones; None if none is found."""
    towards, side = turned([0.0, 0.0, 1.0], azimuth), turned([1.0, 0.0, 0.0], azimuth)
    own = taken[0][2]
    for _ in range(TRIES):
        if in_front:
            spot = towards * (own + radius) * rng.uniform(0.8, 1.2)
            spot = spot + side * rng.uniform(-1, 1) * (own + 0.5 * radius)
        else:
            spot = turned(towards, rng.uniform(60, 300)) * (own + radius) * rng.uniform(0.95, 1.9)
        x, z = float(spot[0]), float(spot[2])
        if all(np.hypot(x - a, z - b) > 0.85 * (radius + r) for a, b, r in taken):
            return x, z, radius
    return None
