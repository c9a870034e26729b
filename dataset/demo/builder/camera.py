"""What a camera does to a rendered picture: studio white, or a phone's optics and sensor."""

import numpy as np
from scipy import ndimage

Array = np.ndarray


def studio_finish(
    rng: np.random.Generator, colour: Array, mask: Array, distance: Array, strength: float
) -> Array:
    """Bring the sweep to white and keep `strength` (0..1) of the shadow; uint8 out."""
    sweep = colour.mean(axis=2)
    floor = (mask < 0.01) & np.isfinite(distance)
    white = float(np.percentile(sweep[floor], 80)) if floor.any() else 1.0
    shade = 1.0 - strength * (1.0 - np.clip(sweep / max(white, 1e-3) + 0.01, 0, 1))
    shade[~np.isfinite(distance)] = 1.0
    share = mask[..., None]
    gain = rng.uniform(0.92, 1.02) / max(white, 1e-3)
    picture = share * colour * gain + (1 - share) * shade[..., None]
    return to_bytes(np.clip(picture, 0, 1) ** rng.uniform(0.88, 1.0))


def metered(colour: Array, mask: Array) -> Array:
    """The picture as a phone's meter exposes it: the frame and the product at middle grey."""
    grey = colour.mean(axis=2)
    subject = float((grey * mask).sum() / max(float(mask.sum()), 1.0))
    middle = 0.7 * float(np.percentile(grey, 60)) + 0.3 * subject
    gain = min(0.5 / max(middle, 1e-3), 1.1 / max(float(np.percentile(grey, 95)), 1e-3))
    return colour * np.clip(gain, 0.7, 2.2)


def _noise(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def _blur(picture: Array, sigma: float) -> Array:
    return ndimage.gaussian_filter(picture, (sigma, sigma, 0))


def _depth_of_field(picture: Array, distance: Array, focus: float, strength: float) -> Array:
    """Blur by distance from the focal plane, between three ready-made blurs."""
    far = np.where(np.isfinite(distance), distance, 50 * focus)
    radius = np.clip(strength * np.abs(1 - focus / np.maximum(far, 1e-3)), 0, 6)
    radius = ndimage.gaussian_filter(radius, 1.5)
    levels = [0.0, 1.5, 3.0, 6.0]
    layers = [picture] + [_blur(picture, sigma) for sigma in levels[1:]]
    result = np.zeros_like(picture)
    for i, layer in enumerate(layers):
        before = levels[i - 1] if i else -1.0
        after = levels[i + 1] if i + 1 < len(levels) else np.inf
        rising = np.clip((radius - before) / (levels[i] - before), 0, 1)
        falling = 1 - np.clip((radius - levels[i]) / (after - levels[i]), 0, 1)
        result += layer * np.minimum(rising, falling)[..., None]
    return result


def _shake(picture: Array, motion: tuple[float, float]) -> Array:
    """Smear along a straight line of `motion` (x, y) pixels."""
    steps = int(np.ceil(np.hypot(*motion))) + 1
    if steps < 3:
        return picture
    height, width = picture.shape[:2]
    margin = steps
    padded = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    total = np.zeros_like(picture)
    for t in np.linspace(-0.5, 0.5, steps):
        top, left = margin + round(t * motion[1]), margin + round(t * motion[0])
        total += padded[top : top + height, left : left + width]
    return total / steps


def phone_photo(
    rng: np.random.Generator, colour: Array, distance: Array, focus: float, depth_blur: float
) -> tuple[Array, int]:
    """What a phone makes of a rendered picture, (height, width, 3) uint8, and its JPEG quality.

    Most photos are fair, some dim, tinted, shaken or out of focus.

    Args:
        colour: (height, width, 3), 0..1.
        distance: (height, width) in cm, inf where nothing is.
        focus: in cm.
        depth_blur: strength in pixels of the blur of things far from the product.
    """
    warmth = rng.normal(0, 0.12)
    dim = rng.random() < 0.36
    shaken = rng.random() < 0.3
    direction = rng.uniform(0, np.pi)
    length = rng.uniform(3.0, 10.0) if shaken else 0.0
    exposure = float(rng.uniform(0.42, 0.72) if dim else rng.uniform(0.85, 1.35))
    balance = np.array([1 + warmth, 1 + rng.normal(0, 0.025), 1 - 1.2 * warmth])
    contrast, saturation = float(rng.uniform(0.7, 1.25)), float(rng.uniform(0.5, 1.2))
    vignette = float(rng.uniform(0.0, 0.4))
    focus_blur = float(rng.uniform(0.9, 2.4) if rng.random() < 0.36 else 0.3)
    noise = float(rng.uniform(0.012, 0.03) if dim else rng.uniform(0.003, 0.015))
    sharpen, quality = float(rng.uniform(0.0, 0.9)), int(rng.integers(40, 83))

    picture: Array = colour.astype(np.float32)
    if depth_blur > 0.3:
        picture = _depth_of_field(picture, distance, focus, depth_blur)
    picture = picture * (exposure * balance).astype(np.float32)
    glow = np.clip(picture - 0.85, 0, 1)
    picture = picture + 0.8 * _blur(glow, 5.0)
    height, width = picture.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    picture = picture * (1 - vignette * np.clip((x**2 + y**2) / 2, 0, 1))[..., None]
    motion = length * np.cos(direction), length * np.sin(direction)
    picture = _shake(_blur(picture, focus_blur), motion)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + saturation * (picture - grey)
    # A shoulder instead of a hard clip keeps bright walls from turning into flat white.
    picture = np.clip(picture, 0, None)
    picture = np.where(picture > 0.7, 0.7 + 0.3 * np.tanh((picture - 0.7) / 0.3), picture)
    picture = 0.45 + (picture - 0.45) * contrast
    grain = _noise(rng, height, width, 1) + 0.6 * _noise(rng, height, width, 3)
    picture = picture + noise * (0.6 * grain + 0.8 * _blur(grain, 0.8))
    picture = picture + sharpen * (picture - _blur(picture, 1.0))
    return to_bytes(picture), quality


def to_bytes(picture: Array) -> Array:
    """0..1 floats to 0..255 bytes."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
