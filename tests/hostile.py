"""Image files that a stranger may send: what each is, and what a reader has to say about it."""

import io
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from visual_search.data.image_files import MAX_DECODED_PIXELS, MAX_PROGRESSIVE_PIXELS, MAX_SIDE


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    colour: int = 0,
    extra: bytes = b"",
    pixels: bool = True,
) -> bytes:
    """A PNG of zeros, made without its pixels in memory.

    Args:
        width: pixels.
        height: pixels.
        depth: bits a channel.
        colour: PNG's colour type: 0 grey, 2 RGB, 6 RGBA.
        extra: chunks behind the header.
        pixels: whether there are any; a file that is refused by its header needs none.
    """
    packed = b""
    if pixels:
        row = bytes(1 + (width * {0: 1, 2: 3, 6: 4}[colour] * depth + 7) // 8)
        packer = zlib.compressobj(1)
        packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", packed)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def nested_icon(inner: bytes) -> bytes:
    """An .ico whose one picture is a whole PNG."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


def claimed_jpeg(side: int) -> bytes:
    """A small JPEG whose header claims `side` pixels each way."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated 3,000 times."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 3000 + b"\xff\xd9"


def float_tiff(value: float) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64), value, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"

CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "0 bytes"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
    "text.jpg": (lambda: b"hello", "not an image of a known format"),
    "pointer.jpg": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "git lfs pull",
    ),
    "cut.png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(40), ""),
    "postscript.jpg": (lambda: EPS, "not an image of a known format"),
    "tall.png": (lambda: png(1, 6_000_000, pixels=False), "a side of 6000000 pixels"),
    "wide.png": (lambda: png(9_000_000, 16, depth=1, pixels=False), "a side of 9000000 pixels"),
    "icon.ico": (
        lambda: nested_icon(png(60_000, 60_000, depth=1, pixels=False)),
        "not an image of a known",
    ),
    "deep.png": (lambda: png(12_200, 12_200, depth=16, pixels=False), "too many to decode"),
    "colours.png": (lambda: png(12_000, 12_000, depth=1, pixels=False), "too many to decode"),
    "claims.jpg": (lambda: claimed_jpeg(65_000), "cannot be in"),
    "scans.jpg": (many_scans, "too many scans"),
    "infinite.tiff": (lambda: float_tiff(np.inf), "infinite or no numbers"),
}
"""By name: the bytes, and words of the reason."""


def sparse_file(path: Path) -> None:
    """A terabyte that takes no room."""
    path.touch()
    os.truncate(path, 1 << 40)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe.jpg": (os.mkfifo, "a pipe, a device"),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), "a pipe, a device"),
    "folder.jpg": (Path.mkdir, "a folder"),
    "nowhere.jpg": (lambda path: path.symlink_to(path.with_name("none")), "does not exist"),
    "loop.jpg": (lambda path: path.symlink_to(path), "cannot be read"),
    "huge.jpg": (sparse_file, "too many"),
}
"""By name: what makes the file, and words of the reason."""

HOSTILE = {name: words for kinds in (CONTENTS, PLACES) for name, (_, words) in kinds.items()}
"""Words of the reason by name."""


def make_hostile(folder: Path, name: str) -> Path:
    """Put one of `HOSTILE` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if name in CONTENTS:
        path.write_bytes(CONTENTS[name][0]())
    else:
        PLACES[name][0](path)
    return path


def heavy_images(folder: Path) -> list[Path]:
    """Images just within the limits, of the kinds that take most memory to decode."""
    folder.mkdir(parents=True, exist_ok=True)
    side = math.isqrt(MAX_DECODED_PIXELS)
    (folder / "grey16.png").write_bytes(png(side, side, depth=16))
    (folder / "colour16.png").write_bytes(png(side, side, depth=16, colour=2))
    (folder / "cutout.png").write_bytes(png(side, side, colour=6))
    (folder / "longest.png").write_bytes(png(MAX_DECODED_PIXELS // MAX_SIDE, MAX_SIDE, colour=2))
    flat = Image.new("RGB", (side, side), (200, 30, 40))
    flat.save(folder / "lossless.webp", lossless=True, method=0)
    flat.resize((14_000, 14_000)).save(folder / "baseline.jpg")
    flat = flat.resize((math.isqrt(MAX_PROGRESSIVE_PIXELS),) * 2)
    flat.save(folder / "progressive.jpg", progressive=True, subsampling=0)
    Image.new("F", (side, side), 0.5).save(folder / "float.tiff", compression="tiff_adobe_deflate")
    return sorted(folder.iterdir())
