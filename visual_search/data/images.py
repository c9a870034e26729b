"""From the bytes of an image to a square of pixels. Bad files are an answer here, never a crash.

EXIF orientation is ignored everywhere: the challenge's boxes are in pixels of the stored image.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from visual_search.data.image_files import (
    MAX_DECODED_PIXELS,
    UnreadableImage,
    open_image,
    read_bytes,
)

try:
    import simplejpeg
except ImportError:  # PIL reads everything that it does, at half the speed
    simplejpeg = None

PIXELS_VERSION = 2
"""Raise it with every change of decoding, cutting or resizing: embeddings kept on disk are then
made anew."""

Box = tuple[int, int, int, int]
"""`x, y, width, height` in pixels of the stored image, EXIF orientation ignored."""
Edges = tuple[float, float, float, float]
"""`left, top, right, bottom` in pixels of a decoded image, which can end within a pixel."""

MAX_SCANS = 100
"""Of a progressive JPEG, each a pass over all its pixels; encoders write about ten."""

# One image of more stored pixels is decoded at a time: two threads do not hold two of them.
LARGE_PIXELS = 16_000_000

# A JPEG is decoded at the smallest DCT scale that still leaves this many times the target's
# pixels each way: the antialiased resize after it hides the difference (0.3 of 255 on average).
DCT_OVERSAMPLING = 2

TRIM_SIZE = 1500
"""The size in place of the target's at which an image is decoded whose white border is cut away."""

# White borders: JPEG leaves white a few steps below 255; a row or column counts as content from a
# share of pixels that are not white (dust does not); what is left must be at least a share of each
# side; and a margin is left round it, of the content's longer side.
WHITE, CONTENT_SHARE, LEAST_SHARE, MARGIN = 245, 0.004, 0.1, 0.02

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_SCAN, _PROGRESSIVE = b"\xff\xda", b"\xff\xc2"
_ROWS_AT_ONCE = 1024
_one_large_image = threading.RLock()


@dataclass(frozen=True)
class ImageItem:
    """One image to look at: a file, and the box round the product in it if there is one."""

    path: Path
    box: Box | None = None
    trim: bool = False
    """Whether the white border of an image without a box is cut away."""


@dataclass(frozen=True)
class ImageProblem:
    """What was wrong with one image, and what was used in its place."""

    path: str
    reason: str


def decode_image(data: bytes, needed: tuple[int, int] | None = None) -> Image.Image:
    """Decode the bytes of an image file to RGB.

    Args:
        data: the whole file.
        needed: the width and height in pixels below which the *whole* image must not be
            scaled. A JPEG larger than that is decoded at 1/2, 1/4 or 1/8 of its size, and
            another image of more than `LARGE_PIXELS` is averaged down.

    Returns:
        An RGB image, the first frame of an animation; transparency lies on white.

    Raises:
        UnreadableImage: with the reason, in words for the person who has the file.
    """
    image = open_image(data)
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg and data.count(_SCAN) > MAX_SCANS:
        raise UnreadableImage("a progressive JPEG of too many scans")
    stored = image.size
    if is_jpeg:
        _scale_jpeg(image, needed)
    with _alone_if_large(stored):
        try:
            image.load()
            rgb = to_rgb(image)
            if needed and not is_jpeg and _is_large(stored):
                rgb = rgb.reduce((max(rgb.width // needed[0], 1), max(rgb.height // needed[1], 1)))
        except UnreadableImage:
            raise
        except Exception as error:  # decoders raise anything from SyntaxError to MemoryError
            raise UnreadableImage(str(error).strip() or type(error).__name__) from error
        return rgb


def _is_large(size: tuple[int, int]) -> bool:
    return size[0] * size[1] > LARGE_PIXELS


@contextmanager
def _alone_if_large(size: tuple[int, int]) -> Iterator[None]:
    if not _is_large(size):
        yield
        return
    with _one_large_image:
        try:
            yield
        finally:
            if sys.platform == "linux":  # glibc keeps what was freed, for each thread anew
                ctypes.CDLL(None).malloc_trim(0)


def decoded_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of an image whose pixels could all be decoded.

    Raises:
        UnreadableImage: with the reason, also for an image that is cut off.
    """
    data = read_bytes(path)
    decode_image(data)
    return open_image(data).size


def _scale_jpeg(image: Image.Image, needed: tuple[int, int] | None) -> None:
    """Have a JPEG decoded no larger than is needed, and never beyond the limit."""
    width, height = image.size
    least = math.ceil(math.sqrt(width * height / MAX_DECODED_PIXELS))
    if least > 1:
        scale = next(power for power in (2, 4, 8) if power >= least)
        most = (width // scale, height // scale)
        needed = (min(needed[0], most[0]), min(needed[1], most[1])) if needed else most
    if needed is not None:
        image.draft(image.mode, needed)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as a person sees it: deep greys scaled to 8 bits, transparency on white, CMYK converted.

    Raises:
        UnreadableImage: for values that are no numbers.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        convert = _scaled_to_bytes(image)
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        convert = _on_white
    else:
        return image.convert("RGB")
    # Some rows at a time: each step holds a copy of what it works on.
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS_AT_ONCE):
        rows = (0, top, image.width, min(top + _ROWS_AT_ONCE, image.height))
        part = image.crop(rows)
        part.info = image.info
        rgb.paste(convert(part), rows)
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _scaled_to_bytes(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How one channel of integers or floats becomes grey: by the range that its values tell.

    PIL would clip them to white. 16-bit greys open as 16- or 32-bit integers; floats lie in 0..1
    by custom; what is beyond 65,535 is shown in the range it has.
    """
    low, high = map(float, image.getextrema())  # type: ignore[arg-type]
    if not math.isfinite(low + high):
        raise UnreadableImage("its values are infinite or no numbers")
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((top for top in tops if high <= top), high)

    def convert(part: Image.Image) -> Image.Image:
        values = np.nan_to_num(np.asarray(part).astype(np.float64) * (255.0 / top))
        return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8)).convert("RGB")

    return convert


def clip_box(box: Box, width: int, height: int) -> Box | None:
    """The part of `box` inside an image of `width` x `height` pixels, None where nothing is."""
    x, y, w, h = box
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return None
    return left, top, right - left, bottom - top


def read_region(item: ImageItem, size: int) -> Image.Image:
    """Read one image, decoded no larger than an antialiased resize of its box to `size` needs.

    Args:
        item: the file and the box.
        size: the side in pixels that the region is going to be resized to.

    Returns:
        RGB, maybe at a fraction of the stored size, cut to the whole pixels round the box: nothing
        else can bleed into a resize.

    Raises:
        UnreadableImage: when there is nothing to show at all.
    """
    return _decode_region(read_bytes(item.path), item.box, size)[0]


def _decode_region(
    data: bytes, wanted: Box | None, size: int
) -> tuple[Image.Image, Edges, str | None]:
    """As :func:`read_region`; the box's edges in it, and what was wrong although there are pixels:
    a cut file, a box outside the image."""
    stored = open_image(data).size
    box, problem = _inside(wanted, stored)
    needed = _needed(stored, box, size)
    with _alone_if_large(stored):
        try:
            image = decode_image(data, needed)
        except UnreadableImage as error:
            if not data.startswith(_JPEG_START):
                raise
            # An end marker behind a cut JPEG lets the decoder finish with what is there.
            image = decode_image(data + _JPEG_END, needed)
            problem = f"damaged, its readable part is used ({error})"
        left, top, right, bottom = _scaled(box, stored, image.size)
        x, y = math.floor(left), math.floor(top)
        cut = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
        del image
    return cut, (left - x, top - y, right - x, bottom - y), problem


def _inside(box: Box | None, stored: tuple[int, int]) -> tuple[Box, str | None]:
    """The box within its image, the whole image where there is none; and what was wrong."""
    whole = (0, 0, *stored)
    if box is None:
        return whole, None
    inside = clip_box(box, *stored)
    if inside is None:
        return whole, f"box {box} lies outside the image {stored}, the whole image is used"
    if inside != tuple(box):
        return inside, f"box {box} reaches outside the image {stored}, it is clipped"
    return inside, None


def _needed(stored: tuple[int, int], box: Box, size: int) -> tuple[int, int]:
    """The size of the whole image at which its box can be resized to `size` without a loss."""
    scale = min(max(size * DCT_OVERSAMPLING / box[2], size * DCT_OVERSAMPLING / box[3]), 1.0)
    return math.ceil(stored[0] * scale), math.ceil(stored[1] * scale)


def _scaled(box: Box, stored: tuple[int, int], decoded: tuple[int, int]) -> Edges:
    """The edges of a box in an image decoded at another size."""
    (x, y, w, h), across, down = box, decoded[0] / stored[0], decoded[1] / stored[1]
    right, bottom = min((x + w) * across, decoded[0]), min((y + h) * down, decoded[1])
    return x * across, y * down, right, bottom


def load_pixels(item: ImageItem, size: int) -> tuple[np.ndarray, ImageProblem | None]:
    """One squashed view of :func:`load_views`."""
    views, problem = load_views(item, [("squash", size)])
    return views[0], problem


def load_views(
    item: ImageItem, views: Sequence[tuple[str, int]]
) -> tuple[list[np.ndarray], ImageProblem | None]:
    """Read an image as the model sees it in validation and in the submission; never raises.

    The region (the box, or the whole image) is decoded once and resized, bicubic with
    antialiasing, to a square for each view.

    Args:
        item: the file and the box.
        views: how the region becomes a square, a key of :data:`FITS`, and its side in pixels.

    Returns:
        Of each view the pixels `(3, side, side)`, uint8, 0..255, RGB, stored channel by channel
        of a pixel; grey squares for an unreadable file. And what was wrong, or None.
    """
    try:
        pixels, problem = _region_pixels(item, max(side for _, side in views))
        squares = [FITS[fit](pixels, side) for fit, side in views]
    except Exception as error:  # a ranker answers every query, whatever is broken
        reason = str(error).strip() or type(error).__name__
        squares = [np.full((side, side, 3), 127, dtype=np.uint8) for _, side in views]
        problem = f"{reason}; a grey image is used"
    found = ImageProblem(str(item.path), problem) if problem else None
    return [square.transpose(2, 0, 1) for square in squares], found


def _region_pixels(item: ImageItem, size: int) -> tuple[np.ndarray, str | None]:
    """The region to look at, `(height, width, 3)`, to whole pixels of the decoded image."""
    data = read_bytes(item.path)
    trimmed = item.trim and item.box is None
    if trimmed:  # how much of the image a border takes is known once it is decoded
        size = max(size, TRIM_SIZE)
    plain = _decode_plain_jpeg(data, item.box, size)
    if plain is not None:
        pixels, edges, problem = plain
    else:
        image, edges, problem = _decode_region(data, item.box, size)
        pixels = _as_array(image)
    pixels = _whole_pixels(pixels, edges)
    if trimmed:
        pixels = _whole_pixels(pixels, content_region(pixels))
    return pixels, problem


def _decode_plain_jpeg(
    data: bytes, wanted: Box | None, size: int
) -> tuple[np.ndarray, Edges, str | None] | None:
    """The whole of an undamaged JPEG of grey or three colours, at 1/1 or at most 1/2 of its size.

    Returns:
        Pixels `(height, width, 3)`, uint8, RGB; the box's edges in them, and what was wrong with
        it. None where the file is anything else, damaged or large.
    """
    if simplejpeg is None or not data.startswith(_JPEG_START) or data.count(_SCAN) > MAX_SCANS:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("Gray", "YCbCr", "RGB") or width * height > MAX_DECODED_PIXELS:
            return None
        if _is_large((width, height)) and _PROGRESSIVE in data:  # held at full size
            return None
        box, problem = _inside(wanted, (width, height))
        least_width, least_height = _needed((width, height), box, size)
        pixels = simplejpeg.decode_jpeg(
            data,
            min_width=least_width,
            min_height=least_height,
            # Scales between 1/2 and 1 take longer than the whole image.
            min_factor=2,
        )
    except ValueError:  # strict: also for what a decoder could guess
        return None
    return pixels, _scaled(box, (width, height), (pixels.shape[1], pixels.shape[0])), problem


def _as_array(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image; some rows at a time, for PIL hands over copies of copies."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, _ROWS_AT_ONCE):
        rows = (0, top, image.width, min(top + _ROWS_AT_ONCE, image.height))
        pixels[top : rows[3]] = np.asarray(image.crop(rows))
    return pixels


def _whole_pixels(pixels: np.ndarray, edges: Edges) -> np.ndarray:
    """The pixels within the edges, rounded; at least one.

    An image is decoded at twice the target or more, so that half a pixel is a quarter there.
    """
    height, width = pixels.shape[:2]
    left, top = min(round(edges[0]), width - 1), min(round(edges[1]), height - 1)
    return pixels[top : max(round(edges[3]), top + 1), left : max(round(edges[2]), left + 1)]


def resize_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize `(height, width, 3)`, uint8, to `(size, size, 3)`: bicubic, antialiased."""
    return _resized(pixels, size, size)


def letterbox(pixels: np.ndarray, size: int) -> np.ndarray:
    """The whole of `(height, width, 3)`, uint8, in the middle of a white `(size, size, 3)`."""
    longest = max(pixels.shape[:2])
    height, width = (max(round(side * size / longest), 1) for side in pixels.shape[:2])
    square = np.full((size, size, 3), 255, dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = _resized(pixels, height, width)
    return square


FITS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "squash": resize_square,
    "letterbox": letterbox,
}
"""How a region becomes a square; the names are those of `embedding.views`."""


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same filter as PIL's, to a rounding; torch has it vectorised for bytes."""
    # Loaded here: tools that read tables and no pixels start two seconds sooner without it.
    import torch
    import torch.nn.functional as F

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(image, (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def content_region(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The part of an image inside its white border.

    Args:
        pixels: `(height, width, 3)`, uint8, RGB.

    Returns:
        `left, top, right, bottom`, right and bottom excluded, never empty: the whole image
        where it has no white border, is all white, or shows next to nothing.
    """
    height, width = pixels.shape[:2]
    marked = pixels.min(axis=2) < WHITE
    rows = np.flatnonzero(marked.sum(axis=1) > CONTENT_SHARE * width)
    columns = np.flatnonzero(marked.sum(axis=0) > CONTENT_SHARE * height)
    whole = (0, 0, width, height)
    if not len(rows) or not len(columns):
        return whole
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    if bottom - top < LEAST_SHARE * height or right - left < LEAST_SHARE * width:
        return whole
    margin = round(MARGIN * max(bottom - top, right - left))
    return (
        max(int(left) - margin, 0),
        max(int(top) - margin, 0),
        min(int(right) + margin, width),
        min(int(bottom) + margin, height),
    )
