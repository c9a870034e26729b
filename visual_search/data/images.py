"""From the bytes of an image to a square of pixels. Bad files are an answer here, never a crash.

EXIF orientation is ignored everywhere: the challenge's boxes are in pixels of the stored image.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from visual_search.common.files import LFS_POINTER

try:
    import simplejpeg
except ImportError:  # PIL reads everything that it does, at half the speed
    simplejpeg = None

PIXELS_VERSION = 1
"""Raise it with every change of decoding, cutting or resizing: embeddings kept on disk are then
made anew."""

Box = tuple[int, int, int, int]
"""`x, y, width, height` in pixels of the stored image, EXIF orientation ignored."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Of image files, in small letters."""

# The most pixels held decoded at once: 150 million are 450 MB as RGB, a few threads of them
# still fit into the evaluator's 16 GB. Larger JPEGs are decoded at a fraction of their size.
MAX_DECODED_PIXELS = 150_000_000

# A JPEG is decoded at the smallest DCT scale that still leaves this many times the target's
# pixels each way: the antialiased resize after it hides the difference (0.3 of 255 on average).
DCT_OVERSAMPLING = 2

# Every 8 x 8 block of a JPEG takes a bit at least. A damaged header can claim billions of pixels,
# which a decoder would fill with grey for seconds.
MAX_PIXELS_A_BYTE = 8 * 64

# White borders: JPEG leaves white a few steps below 255; a row or column counts as content from a
# share of pixels that are not white (dust does not); what is left must be at least a share of each
# side; and a margin is left round it, of the content's longer side.
WHITE, CONTENT_SHARE, LEAST_SHARE, MARGIN = 245, 0.004, 0.1, 0.02

# PIL's own guard raises far below what a scaled decode can handle; ours stands in decode_image.
Image.MAX_IMAGE_PIXELS = None

_JPEG_END = b"\xff\xd9"
_codecs_registered = threading.Lock()


class UnreadableImage(Exception):
    """No pixels could be had from a file; the message says why, without the file's name."""


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
            scaled; a JPEG larger than that is decoded at 1/2, 1/4 or 1/8 of its size.

    Returns:
        An RGB image, the first frame of an animation; transparency lies on white.

    Raises:
        UnreadableImage: with the reason, in words for the person who has the file.
    """
    if not data:
        raise UnreadableImage("the file is empty (0 bytes)")
    if data.startswith(LFS_POINTER):
        raise UnreadableImage("the file is a git-LFS pointer: run `git lfs pull`")
    with _codecs_registered:
        Image.init()  # not thread-safe on its first call
    try:
        image = Image.open(io.BytesIO(data))
        if image.format == "JPEG" and image.width * image.height > len(data) * MAX_PIXELS_A_BYTE:
            raise UnreadableImage(
                f"{image.width} x {image.height} pixels cannot be in {len(data)} bytes"
            )
        if needed is not None and image.format == "JPEG":
            image.draft(image.mode, needed)
        width, height = image.size
        if width * height > MAX_DECODED_PIXELS:
            raise UnreadableImage(f"{width} x {height} pixels are too many to decode")
        image.load()
        return to_rgb(image)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise anything from SyntaxError to MemoryError
        raise UnreadableImage(_reason(data, error)) from error


def _reason(data: bytes, error: Exception) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "the file is a web page, not an image"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    return str(error).strip() or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as a person sees it: 16-bit scaled to 8, transparency on white, CMYK converted."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        # 16-bit greyscale files open as 16- or 32-bit integers; PIL would clip them to white.
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        scaled = np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def clip_box(box: Box, width: int, height: int) -> Box | None:
    """The part of `box` inside an image of `width` x `height` pixels, None where nothing is."""
    x, y, w, h = box
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return None
    return left, top, right - left, bottom - top


@dataclass(frozen=True)
class Photo:
    """The region of an image to look at, decoded: RGB, maybe at a fraction of its stored size."""

    image: Image.Image
    """Cut to the whole pixels round the region; nothing else can bleed into a resize."""
    region: tuple[float, float, float, float]
    """`left, top, right, bottom` in pixels of `image`, which can end within a pixel."""
    problem: str | None
    """What was wrong although there are pixels, such as a cut file or a box outside the image."""


def read_photo(item: ImageItem, size: int) -> Photo:
    """Read one image, decoded no larger than an antialiased resize of its box to `size` needs.

    Args:
        item: the file and the box.
        size: the side in pixels that the region is going to be resized to.

    Raises:
        UnreadableImage: when there is nothing to show at all.
    """
    return _photo(read_bytes(item.path), item.box, size)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        UnreadableImage: when there is none to read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage("the file does not exist") from None
    except OSError as error:
        raise UnreadableImage(f"the file cannot be read ({error.strerror})") from error
    except ValueError as error:  # a zero byte in the name
        raise UnreadableImage(f"the file cannot be read ({error})") from error


def _photo(data: bytes, wanted: Box | None, size: int) -> Photo:
    stored = stored_size(data)
    box, problem = _region(wanted, stored)
    needed = _needed(stored, box, size) if stored and box else None
    try:
        image = decode_image(data, needed)
    except UnreadableImage as error:
        if not data.startswith(b"\xff\xd8"):
            raise
        # An end marker behind a cut JPEG lets the decoder finish with what is there.
        image = decode_image(data + _JPEG_END, needed)
        problem = f"damaged, its readable part is used ({error})"
    if stored is None or box is None:
        return Photo(image, (0, 0, image.width, image.height), problem)
    return _cut(image, stored, box, problem)


def _needed(stored: tuple[int, int], box: Box, size: int) -> tuple[int, int]:
    """The size of the whole image at which its box can be resized to `size` without a loss."""
    scale = max(size * DCT_OVERSAMPLING / box[2], size * DCT_OVERSAMPLING / box[3])
    return math.ceil(stored[0] * scale), math.ceil(stored[1] * scale)


def _cut(image: Image.Image, stored: tuple[int, int], box: Box, problem: str | None) -> Photo:
    shrink_x, shrink_y = image.width / stored[0], image.height / stored[1]
    x, y, w, h = box
    left, top = x * shrink_x, y * shrink_y
    right, bottom = min((x + w) * shrink_x, image.width), min((y + h) * shrink_y, image.height)
    first_x, first_y = math.floor(left), math.floor(top)
    cut = image.crop((first_x, first_y, math.ceil(right), math.ceil(bottom)))
    region = (left - first_x, top - first_y, right - first_x, bottom - first_y)
    return Photo(cut, region, problem)


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that an image file's header tells; None where it has none."""
    try:
        return Image.open(io.BytesIO(data)).size
    except Exception:  # decode_image says what is wrong
        return None


def _region(box: Box | None, stored: tuple[int, int] | None) -> tuple[Box | None, str | None]:
    if stored is None:
        return None, None
    whole = (0, 0, *stored)
    if box is None:
        return whole, None
    inside = clip_box(box, *stored)
    if inside is None:
        return whole, f"box {box} lies outside the image {stored}, the whole image is used"
    if inside != tuple(box):
        return inside, f"box {box} reaches outside the image {stored}, it is clipped"
    return inside, None


def load_pixels(item: ImageItem, size: int) -> tuple[np.ndarray, ImageProblem | None]:
    """Read an image as the model sees it in validation and in the submission; never raises.

    The region (the box, or the whole image) is resized to a square without keeping its aspect,
    bicubic with antialiasing.

    Returns:
        Pixels `(3, size, size)`, uint8, 0..255, RGB, stored channel by channel of a pixel; a
        grey square for an unreadable file. And what was wrong, or None.
    """
    try:
        pixels, problem = _region_pixels(item, size)
        square = resize_square(pixels, size)
    except Exception as error:  # a ranker answers every query, whatever is broken
        reason = str(error).strip() or type(error).__name__
        square = np.full((size, size, 3), 127, dtype=np.uint8)
        problem = f"{reason}; a grey image is used"
    return square.transpose(2, 0, 1), ImageProblem(str(item.path), problem) if problem else None


def resize_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize `(height, width, 3)`, uint8, to `(size, size, 3)`: bicubic, antialiased.

    The same filter as PIL's, to a rounding; torch has it vectorised for bytes.
    """
    # Loaded here: tools that read tables and no pixels start two seconds sooner without it.
    import torch
    import torch.nn.functional as F

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    square = F.interpolate(image, (size, size), mode="bicubic", antialias=True)
    return square[0].permute(1, 2, 0).numpy()


def _region_pixels(item: ImageItem, size: int) -> tuple[np.ndarray, str | None]:
    """The region to look at, `(height, width, 3)`, to whole pixels of the decoded photo."""
    data = read_bytes(item.path)
    trimmed = item.trim and item.box is None

    def needed(width: int, height: int) -> tuple[int, int]:
        # How much of the image a border takes is known once it is decoded.
        stored = (width, height)
        return (
            stored
            if trimmed
            else _needed(stored, _region(item.box, stored)[0] or (0, 0, *stored), size)
        )

    plain = decode_plain_jpeg(data, needed, MAX_DECODED_PIXELS)
    if plain is not None:
        pixels, stored = plain
        box, problem = _region(item.box, stored)
        shrink = (pixels.shape[1] / stored[0], pixels.shape[0] / stored[1])
        x, y, w, h = box or (0, 0, *stored)
        region = (x * shrink[0], y * shrink[1], (x + w) * shrink[0], (y + h) * shrink[1])
    else:
        photo = _photo(data, item.box, 1 << 30 if trimmed else size)
        pixels, region, problem = np.array(photo.image), photo.region, photo.problem
    pixels = _whole_pixels(pixels, region)
    if trimmed:
        pixels = _whole_pixels(pixels, content_region(pixels))
    return pixels, problem


def _whole_pixels(pixels: np.ndarray, region: tuple[float, float, float, float]) -> np.ndarray:
    """The pixels of a region `left, top, right, bottom`, its edges rounded; at least one.

    An image is decoded at twice the target or more, so that half a pixel is a quarter there.
    """
    height, width = pixels.shape[:2]
    left, top = min(round(region[0]), width - 1), min(round(region[1]), height - 1)
    return pixels[top : max(round(region[3]), top + 1), left : max(round(region[2]), left + 1)]


def decode_plain_jpeg(
    data: bytes, needed: Callable[[int, int], tuple[int, int]], max_pixels: int
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Decode an undamaged JPEG of grey or three colours at 1/1, or at most 1/2, of its size.

    Args:
        data: the whole file.
        needed: of the stored width and height, the width and height not to go below; it is
            called before anything is decoded.
        max_pixels: stored; a larger image is left to the long way.

    Returns:
        Pixels `(height, width, 3)`, uint8, RGB, and the stored width and height. None where
        the file is anything else, or is damaged.
    """
    if simplejpeg is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("Gray", "YCbCr", "RGB") or width * height > max_pixels:
            return None
        least_width, least_height = needed(width, height)
        pixels = simplejpeg.decode_jpeg(
            data,
            min_width=least_width,
            min_height=least_height,
            # Scales between 1/2 and 1 take longer than the whole photo.
            min_factor=2,
        )
    except ValueError:  # strict: also for what a decoder could guess
        return None
    return pixels, (width, height)


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
