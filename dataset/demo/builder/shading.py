"""Light worked out from depths in numpy: world positions, soft shadows, ambient occlusion."""

import numpy as np
from scipy import ndimage

Array = np.ndarray

SHADOW_TAPS = 13
OCCLUSION_TAPS = 10


def unproject(depth: Array, matrix: Array) -> Array:
    """World coordinates (height, width, 3) of a depth buffer with values 0..1.

    matrix (4, 4) takes world coordinates to the cube -1..1.
    """
    height, width = depth.shape
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = 1 - (np.arange(height) + 0.5) / height * 2
    grid = np.empty((height, width, 4))
    grid[..., 0], grid[..., 1] = x[None, :], y[:, None]
    grid[..., 2], grid[..., 3] = depth * 2 - 1, 1.0
    points = grid @ np.linalg.inv(matrix).T
    return points[..., :3] / points[..., 3:]


def _disc(count: int) -> list[tuple[float, float]]:
    """Points spread evenly over the unit disc (Vogel's spiral)."""
    angles = np.arange(count) * 2.399963
    radii = np.sqrt((np.arange(count) + 0.5) / count)
    return list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))


def soft_shadow(world: Array, near: Array, matrix: Array, softness: float) -> Array:
    """Share of the key light, 0..1, that reaches the points `world` (height, width, 3).

    near (side, side) is the depth map seen from the light, matrix takes world coordinates to it
    (x and y in -1..1, z in 0..1), softness is the blur as a share of the map's side. Points
    outside the map are lit.
    """
    side = near.shape[0]
    points = (world @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)
    inside = (np.abs(points[..., :2]) < 1).all(axis=2)
    x, y, z = points[inside].T
    column, row = (x * 0.5 + 0.5) * side, (0.5 - y * 0.5) * side
    lit = np.zeros(len(z), np.float32)
    for index, (dx, dy) in enumerate(_disc(SHADOW_TAPS)):
        # A third of the taps stay close, which gives a dark core and a soft rim.
        reach = softness * (0.25 if index % 3 == 0 else 1.0)
        shifted_x = np.clip(column + dx * reach * side, 0, side - 1).astype(np.int32)
        shifted_y = np.clip(row + dy * reach * side, 0, side - 1).astype(np.int32)
        slack = np.float32(0.004 + 0.6 * reach * float(np.hypot(dx, dy)))
        lit += z - slack <= near[shifted_y, shifted_x]
    result = np.ones(world.shape[:2], np.float32)
    result[inside] = lit / SHADOW_TAPS
    return result


def occlusion(world: Array, distance: Array, reach: float) -> Array:
    """Ambient light, 0..1, that arrives at each point, judged by the geometry in view.

    world (height, width, 3) and distance (height, width; inf = nothing) in cm; reach is how far,
    in cm, things darken each other.
    """
    world = world.astype(np.float32)
    normal = np.cross(np.gradient(world, axis=0), np.gradient(world, axis=1))
    normal /= np.maximum(np.linalg.norm(normal, axis=2, keepdims=True), 1e-9)
    finite = np.isfinite(distance)
    typical = float(np.median(distance[finite])) if finite.any() else 1.0
    pixels = max(3.0, 0.9 * distance.shape[0] * reach / typical)
    closed = np.zeros(distance.shape, np.float32)
    for dx, dy in _disc(OCCLUSION_TAPS):
        shift = (round(dy * pixels), round(dx * pixels))
        step = np.roll(world, shift, axis=(0, 1)) - world
        length = np.sqrt(np.einsum("ijk,ijk->ij", step, step)) + 1e-6
        rise = np.abs(np.einsum("ijk,ijk->ij", step, normal)) / length
        closer = np.roll(distance, shift, axis=(0, 1)) < distance - 0.02 * reach
        closed += np.where(closer, np.clip(rise - 0.15, 0, 1) / (1 + (length / reach) ** 2), 0)
    result = np.clip(1.0 - 1.9 * closed / OCCLUSION_TAPS, 0.25, 1.0)
    result[~finite] = 1.0
    return ndimage.gaussian_filter(result, 1.2)
