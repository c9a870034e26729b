"""What an image file is, by its content, and what it may cost to read one.

The only place that opens images: a file from a stranger may be a pipe, a bomb or a web page.
"""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

from PIL import Image, PngImagePlugin

from visual_search.common.files import LFS_POINTER, open_regular

Image.init()  # not thread-safe on its first call
FORMATS = tuple(
    name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN
)
"""What is read, by content: nothing else of PIL's, which would start Ghostscript for an EPS file
and open what is nested in an ICO. JPEG includes MPO, whose first picture is taken."""

SUFFIXES = frozenset(ending for ending, name in Image.EXTENSION.items() if name in FORMATS)
"""Endings of image files, in small letters: what has one, or begins like an image, is one."""

MAX_FILE_BYTES = 128 << 20
MAX_SIDE = 65_535
"""JPEG's own limit. It bounds the aspect too: a resize holds target times the longer side."""
MAX_DECODED_PIXELS = 36_000_000
"""Held decoded: 144 MB as PIL keeps RGB, up to four times as much while a WebP is decoded. JPEGs
beyond are decoded at a fraction of their size."""
MAX_PROGRESSIVE_PIXELS = 2 * MAX_DECODED_PIXELS
"""A progressive JPEG's coefficients are held at full size, 6 bytes a pixel."""
# Every 8 x 8 block of a JPEG takes a bit at least. A damaged header can claim billions of pixels,
# which a decoder would fill with grey for seconds.
MAX_PIXELS_A_BYTE = 8 * 64

# PIL's own guard raises far below what a scaled decode can handle; ours stands in open_image.
Image.MAX_IMAGE_PIXELS = None
# Printers' colour profiles have a megabyte or two; PIL refuses the whole image from one on.
PngImagePlugin.MAX_TEXT_CHUNK = 8 << 20


NOT_READ, HANGS = "the file cannot be read", "reading the file did not end"
"""How a reason begins that lies in the drive or its rights, not in what the file holds."""


class UnreadableImage(Exception):
    """No pixels could be had from a file; the message says why, without the file's name."""


def open_file(path: Path) -> BinaryIO:
    """Open a regular file of at most `MAX_FILE_BYTES`; never waits, as a pipe would make one.

    Raises:
        UnreadableImage: when it is missing, too large, or anything else than a regular file.
    """
    try:
        handle = open_regular(path)
    except FileNotFoundError:
        raise UnreadableImage("the file does not exist") from None
    except OSError as error:
        raise UnreadableImage(f"{NOT_READ} ({error.strerror})") from error
    except ValueError as error:  # a zero byte in the name
        raise UnreadableImage(f"{NOT_READ} ({error})") from error
    size = os.fstat(handle.fileno()).st_size
    if size > MAX_FILE_BYTES:
        handle.close()
        raise UnreadableImage(f"{size >> 20} MB are too many for an image")
    return handle


def read_bytes(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        UnreadableImage: as :func:`open_file` does, and for a file that :func:`hanging` found.
    """
    if path in _given_up:
        raise UnreadableImage(f"{HANGS}; is its drive gone?")
    thread = threading.get_ident()
    _reading[thread] = path, time.monotonic()
    try:
        with open_file(path) as handle:
            return handle.read(MAX_FILE_BYTES)
    except OSError as error:
        raise UnreadableImage(f"{NOT_READ} ({error.strerror})") from error
    finally:
        del _reading[thread]


HANGING_SECONDS, LEAST_SECONDS = 10.0, 0.5
"""What a read may take; half as long after each that hung, since the drive is gone then."""
_reading: dict[int, tuple[Path, float]] = {}
"""By thread, what it reads and since when."""
_given_up: set[Path] = set()


def hanging() -> list[int]:
    """The threads whose read of a file takes too long; this process reads none of these again."""
    found, now = [], time.monotonic()
    for thread, (path, since) in list(_reading.items()):
        if now - since > max(HANGING_SECONDS / 2 ** len(_given_up), LEAST_SECONDS):
            _given_up.add(path)
            found.append(thread)
    return found


def is_image(path: Path) -> bool:
    """Whether a file has an image's ending, or begins as an image does."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with open_file(path) as handle:
            start = handle.read(16)
    except (UnreadableImage, OSError):
        return False
    return any(Image.OPEN[name][1](start) is True for name in FORMATS)  # type: ignore[misc]


def open_image(source: bytes | BinaryIO) -> Image.Image:
    """The header of an image: its size, mode and format; nothing is decoded yet.

    Raises:
        UnreadableImage: when it is no image of `FORMATS`, or would cost too much to decode.
    """
    handle = io.BytesIO(source) if isinstance(source, bytes) else source
    start = handle.read(512)
    n_bytes = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    if not n_bytes:
        raise UnreadableImage("the file is empty (0 bytes)")
    if start.startswith(LFS_POINTER):
        raise UnreadableImage("the file is a git-LFS pointer: run `git lfs pull`")
    try:
        image = Image.open(handle, formats=FORMATS)
    except Image.UnidentifiedImageError:
        is_page = start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head"))
        what = "the file is a web page, not an image" if is_page else "not an image"
        known = "" if is_page else f" of a known format ({', '.join(FORMATS)})"
        raise UnreadableImage(what + known) from None
    except Exception as error:  # readers of headers raise anything
        raise UnreadableImage(str(error).strip() or type(error).__name__) from error
    if reason := _too_costly(image, n_bytes):
        raise UnreadableImage(reason)
    return image


def _too_costly(image: Image.Image, n_bytes: int) -> str | None:
    width, height = image.size
    if max(image.size) > MAX_SIDE:
        return f"a side of {max(image.size)} pixels is too long"
    if image.format not in ("JPEG", "MPO"):
        limit = MAX_DECODED_PIXELS
    elif width * height > n_bytes * MAX_PIXELS_A_BYTE:
        return f"{width} x {height} pixels cannot be in {n_bytes} bytes"
    else:
        # An eighth each way is the smallest scale.
        limit = MAX_PROGRESSIVE_PIXELS if image.info.get("progressive") else 64 * MAX_DECODED_PIXELS
    if width * height > limit:
        return f"{width} x {height} pixels are too many to decode"
    return None


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of an image, from its header alone, EXIF orientation ignored.

    Raises:
        UnreadableImage: with the reason, when not even the header can be read.
    """
    with open_file(path) as handle, open_image(handle) as image:
        return image.size
