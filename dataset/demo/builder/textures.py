"""Procedural surfaces for floors, walls, tables and grounds, drawn with numpy.

Every painter takes a random generator and returns a tile of SIDE x SIDE x 3 float32 values in
0..1 that repeats without a seam, together with the width of the tile in centimetres.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SIDE = 384

Array = np.ndarray
Painter = Callable[[np.random.Generator], tuple[Array, float]]
Choices = list[tuple[Painter, float]]
"""Painters to draw from, and the shine of what they paint."""


@dataclass(frozen=True)
class Surface:
    """One tile: pixels (SIDE, SIDE, 3) in 0..1, width of the tile in cm, and its shine in 0..1."""

    pixels: Array
    width_cm: float
    shine: float


def fractal(rng: np.random.Generator, slope: float = 1.0, stretch: float = 1.0) -> Array:
    """Seamless noise (SIDE, SIDE) with mean 0 and deviation 1.

    Amplitude falls as frequency ** -slope; stretch > 1 draws it out along the columns.
    """
    fy = np.fft.fftfreq(SIDE)[:, None] * stretch
    fx = np.fft.rfftfreq(SIDE)[None, :]
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) / radius**slope
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
    return (noise / noise.std()).astype(np.float32)


def _tint(base: Array, light: Array, strength: float = 1.0) -> Array:
    """Spread a (SIDE, SIDE) lightness pattern over one colour or a (SIDE, SIDE, 3) picture."""
    return np.clip(base * (1.0 + strength * light[..., None]), 0.0, 1.0).astype(np.float32)


def _grid() -> tuple[Array, Array]:
    """Row and column coordinates of the tile in 0..1."""
    axis = (np.arange(SIDE) + 0.5) / SIDE
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    return rows, columns


def _joint(places: Array, width: float) -> Array:
    """Where a pattern that repeats at whole numbers is within `width` of one."""
    return np.abs(places - np.round(places)) < width


def _choose(rng: np.random.Generator, colours: Sequence[tuple[int, ...]]) -> Array:
    """One of the named 8-bit colours with a little variation, as three floats in 0..1."""
    colour = np.array(colours[int(rng.integers(len(colours)))]) / 255.0
    return np.clip(colour + rng.normal(0, 0.04) + rng.normal(0, 0.012, 3), 0.02, 0.98)


def _sheet(rng: np.random.Generator, colours: Sequence[tuple[int, ...]]) -> Array:
    """A tile of one of the colours; not to be written to."""
    return np.broadcast_to(_choose(rng, colours), (SIDE, SIDE, 3))


def _colours(text: str) -> list[tuple[int, ...]]:
    """8-bit colours of their hexadecimal codes."""
    return [tuple(bytes.fromhex(code)) for code in text.split()]


WOODS = _colours("b08254 8d603a 65422b cdaa7d dec8a8 96765c 786e66 422e24")
PAINTS = _colours("ece8e0 e1dac8 cdd6dc c6d2be e4cdbe aab2b8 d6be82 788ea0 965a50 5c6e62 f0f0f0")
CLOTHS = _colours("a0968c 5a5f69 823c3c 3c506e beaf96 6e785a d2cdc6 463c46 aa7850")


def wood(rng: np.random.Generator) -> tuple[Array, float]:
    """Planks laid along the rows, each with its own tone and grain, dark joints between."""
    planks = int(rng.choice([1, 3, 4, 6, 8]))
    rows, columns = _grid()
    number = np.minimum((columns * planks).astype(int), planks - 1)
    grain = fractal(rng, 1.1, 9.0)
    # Each plank takes its grain from another place of the noise, so joints break the pattern.
    shift = rng.integers(0, SIDE, planks)
    row_index = (np.arange(SIDE)[:, None] + shift[number]) % SIDE
    grain = np.take_along_axis(grain, row_index, axis=0)
    tone = rng.normal(0, rng.uniform(0.02, 0.12), planks)[number]
    picture = _tint(_choose(rng, WOODS), tone + rng.uniform(0.03, 0.09) * grain)
    if planks > 1:
        edge = _joint(columns * planks, 0.012 * planks / 2)
        cut = rng.uniform(0, 1, planks)[number]
        butt = np.abs(((rows - cut + 0.5) % 1.0) - 0.5) < 0.004
        picture[edge | butt] *= rng.uniform(0.45, 0.8)
    return picture, float(planks * rng.uniform(9, 18) if planks > 1 else rng.uniform(60, 120))


def tiles(rng: np.random.Generator) -> tuple[Array, float]:
    """Square or oblong ceramic tiles with joints, plain or as a chessboard."""
    across, down = int(rng.choice([2, 4])), int(rng.choice([2, 4, 8]))
    rows, columns = _grid()
    r, c = (rows * down).astype(int), (columns * across).astype(int)
    tone = rng.normal(0, 0.03, (down, across))[r, c]
    base = _sheet(rng, PAINTS + CLOTHS)
    if rng.random() < 0.35:
        base = np.where(((r + c) % 2 == 0)[..., None], base, _choose(rng, PAINTS + CLOTHS))
    picture = _tint(base, tone + 0.03 * fractal(rng, 1.2))
    width = rng.uniform(0.006, 0.018)
    joint = _joint(rows * down, width * down) | _joint(columns * across, width * across)
    picture[joint] = _choose(rng, [(120, 115, 110), (200, 198, 194), (70, 68, 66)])
    return picture, float(across * rng.uniform(12, 40))


def bricks(rng: np.random.Generator) -> tuple[Array, float]:
    """Bricks in running bond, natural or painted over."""
    down, across = 8, 4
    rows, columns = _grid()
    r = (rows * down).astype(int)
    moved = (columns * across + 0.5 * (r % 2)) % across
    c = moved.astype(int)
    spread = rng.uniform(0.03, 0.16)
    base = _choose(rng, [(150, 75, 55), (170, 110, 80), (190, 180, 165), (225, 222, 216)])
    tone = rng.normal(0, spread, (down, across))[r, c] + 0.06 * fractal(rng, 0.8)
    picture = _tint(base, tone)
    mortar = _tint(_choose(rng, [(180, 175, 168), (110, 105, 100)]), fractal(rng), 0.05)
    joint = _joint(rows * down, 0.07) | _joint(moved, 0.035)
    picture[joint] = mortar[joint]
    return picture, float(rng.uniform(90, 120))


def plaster(rng: np.random.Generator) -> tuple[Array, float]:
    """Painted wall: one colour, faint unevenness."""
    rough = fractal(rng, rng.uniform(0.4, 1.2))
    return _tint(_choose(rng, PAINTS), rough, rng.uniform(0.008, 0.03)), float(rng.uniform(80, 200))


def wallpaper(rng: np.random.Generator) -> tuple[Array, float]:
    """Stripes, dots or a damask-like pattern in two tones."""
    rows, columns = _grid()
    base, other = _choose(rng, PAINTS), _choose(rng, PAINTS + CLOTHS)
    repeats = int(rng.choice([3, 4, 6]))
    u, v = columns * repeats, rows * repeats
    kind = rng.integers(3)
    if kind == 0:
        pattern = (u % 1.0) < rng.uniform(0.2, 0.6)
    elif kind == 1:
        pattern = np.hypot(u % 1.0 - 0.5, v % 1.0 - 0.5) < rng.uniform(0.12, 0.35)
    else:
        a, b = rng.integers(1, 4, 2)
        wave = np.sin(2 * np.pi * (a * u)) * np.sin(2 * np.pi * v)
        pattern = wave + 0.6 * np.cos(2 * np.pi * (u + b * v)) > rng.uniform(0, 0.5)
    mix = (pattern * rng.uniform(0.3, 1.0))[..., None]
    picture = _tint(base * (1 - mix) + other * mix, fractal(rng, 0.5), 0.02)
    return picture, float(rng.uniform(40, 110))


def carpet(rng: np.random.Generator) -> tuple[Array, float]:
    """Woven pile, mottled, sometimes with bands or a lattice of a second colour."""
    rows, columns = _grid()
    picture = _sheet(rng, CLOTHS)
    kind = rng.integers(4)
    if kind:
        n = int(rng.choice([2, 3, 5, 8]))
        lattice = (rows * n) % 1.0 if kind == 1 else (rows * n + columns * n) % 1.0
        if kind == 3:
            lattice = np.maximum(lattice, (rows * n - columns * n) % 1.0)
        pattern = lattice > rng.uniform(0.5, 0.85)
        picture = np.where(pattern[..., None], _choose(rng, CLOTHS), picture)
    light = 0.10 * fractal(rng, 0.15) + 0.05 * fractal(rng, 1.3)
    return _tint(picture, light, rng.uniform(0.7, 1.3)), float(rng.uniform(60, 160))


def cloth(rng: np.random.Generator) -> tuple[Array, float]:
    """Table cloth or bed cover: plain weave or checks, soft creases."""
    rows, columns = _grid()
    base = _sheet(rng, CLOTHS + PAINTS)
    if rng.random() < 0.5:
        n, width = int(rng.choice([4, 6, 10])), rng.uniform(0.2, 0.55)
        share = ((columns * n) % 1.0 < width) * 0.5 + ((rows * n) % 1.0 < width) * 0.5
        base = base * (1 - share[..., None]) + _choose(rng, CLOTHS + PAINTS) * share[..., None]
    light = 0.05 * fractal(rng, 0.2) + rng.uniform(0.02, 0.08) * fractal(rng, 2.0)
    return _tint(base, light), float(rng.uniform(25, 70))


def concrete(rng: np.random.Generator) -> tuple[Array, float]:
    """Concrete or screed with stains."""
    light = 0.05 * fractal(rng, 0.5) + 0.09 * fractal(rng, 1.6)
    return _tint(_choose(rng, [(150, 148, 144), (115, 114, 112), (185, 182, 176)]), light), 150.0


def stone(rng: np.random.Generator) -> tuple[Array, float]:
    """Marble or granite worktop: veins and speckles."""
    base = _choose(rng, [(232, 230, 226), (60, 60, 64), (176, 160, 142), (120, 124, 120)])
    veins = np.exp(-(np.abs(fractal(rng, 1.6)) / rng.uniform(0.02, 0.12)))
    speckle = fractal(rng, rng.uniform(0.0, 0.6))
    light = rng.uniform(-0.35, 0.35) * veins + rng.uniform(0.02, 0.14) * speckle
    return _tint(base, light), float(rng.uniform(50, 120))


def terrazzo(rng: np.random.Generator) -> tuple[Array, float]:
    """Linoleum or terrazzo: chips of three colours in a ground."""
    picture = np.array(_sheet(rng, PAINTS + CLOTHS))
    for _ in range(3):
        chips = fractal(rng, rng.uniform(0.6, 1.2)) > rng.uniform(1.3, 2.0)
        picture[chips] = _choose(rng, CLOTHS + PAINTS)
    return _tint(picture, fractal(rng, 0.6), 0.02), float(rng.uniform(40, 100))


def grass(rng: np.random.Generator) -> tuple[Array, float]:
    """Lawn, more or less dry."""
    light = 0.22 * fractal(rng, 0.25, 1.8) + 0.15 * fractal(rng, 1.4)
    picture = _tint(_choose(rng, [(86, 118, 52), (110, 125, 60), (66, 98, 48)]), light)
    dry = np.clip(fractal(rng, 1.6) * 0.25, 0, 0.5)[..., None]
    return (picture * (1 - dry) + np.array([0.6, 0.53, 0.35]) * dry).astype(np.float32), 180.0


def asphalt(rng: np.random.Generator) -> tuple[Array, float]:
    """Asphalt or gravel: strong fine grain, patches."""
    light = rng.uniform(0.08, 0.25) * fractal(rng, 0.1) + 0.07 * fractal(rng, 1.6)
    base = _choose(rng, [(92, 92, 94), (120, 118, 114), (150, 138, 120), (70, 70, 74)])
    return _tint(base, light), 200.0


def paving(rng: np.random.Generator) -> tuple[Array, float]:
    """Concrete paving stones."""
    picture, _ = bricks(rng)
    grey = picture.mean(axis=2, keepdims=True)
    return (0.35 * picture + 0.65 * grey).astype(np.float32), float(rng.uniform(80, 160))


def foliage(rng: np.random.Generator) -> tuple[Array, float]:
    """A hedge or trees, seen as a wall of leaves."""
    light = 0.35 * fractal(rng, 0.7) + 0.3 * fractal(rng, 1.2)
    return _tint(_choose(rng, [(60, 85, 40), (80, 100, 55), (50, 70, 45)]), light), 300.0


def paper(rng: np.random.Generator) -> tuple[Array, float]:
    """Sheets with lines of print: a desk with papers or a notice on a wall."""
    rows, columns = _grid()
    lines = int(rng.choice([24, 32, 48]))
    words = fractal(rng, 0.5)
    ink = ((rows * lines) % 1.0 < 0.45) & (words > -0.6) & (((columns * 2) % 1.0) > 0.08)
    picture = np.array(_sheet(rng, [(238, 236, 230), (225, 215, 195)]))
    picture[ink] *= 0.55
    for top, left in rng.integers(0, SIDE - 110, (2, 2)):
        block = picture[top : top + 100, left : left + 110]
        block[:] = _tint(_choose(rng, CLOTHS), fractal(rng, 1.5)[:100, :110], 0.2)
    return picture.astype(np.float32), float(rng.uniform(35, 60))


FLOORS: Choices = [(wood, 0.35), (tiles, 0.3), (carpet, 0.05), (concrete, 0.1), (terrazzo, 0.2)]
WALLS: Choices = [
    *(2 * [(plaster, 0.02)]),
    *[(wallpaper, 0.03), (bricks, 0.02), (tiles, 0.2), (wood, 0.1)],
]
TABLES: Choices = [
    *[(wood, 0.3), (wood, 0.2), (cloth, 0.02), (stone, 0.4), (plaster, 0.2)],
    *[(carpet, 0.02), (paper, 0.05), (tiles, 0.3)],
]
GROUNDS: Choices = [(grass, 0.0), (asphalt, 0.02), (paving, 0.03), (concrete, 0.03), (wood, 0.1)]
OUTDOOR_WALLS: Choices = [
    *[(bricks, 0.02), (foliage, 0.0), (foliage, 0.0), (concrete, 0.02)],
    *[(plaster, 0.02), (wood, 0.05)],
]


def paint(rng: np.random.Generator, choices: Choices) -> Surface:
    """Draw one of the painters and let it paint."""
    painter, shine = choices[rng.integers(len(choices))]
    pixels, width_cm = painter(rng)
    return Surface(pixels, width_cm, shine * float(rng.uniform(0.3, 1.0)))
