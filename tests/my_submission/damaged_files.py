"""Files as they come from users, shops and broken disks."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import draw_product

PIXELS, PARTLY, NOTHING = "pixels", "partly", "nothing"
"""Read without a word; read and told; replaced by grey and told."""


def _photo(side: int = 96) -> Image.Image:
    return draw_product(3, 1, side)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(**options: object) -> bytes:
    return _saved(_photo(), "JPEG", **options)


def _noisy(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    return _saved(Image.fromarray(noise), kind)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_claiming(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*part) for part in parts)


def _jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(_jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _arithmetic() -> bytes:
    """The start of frame of an arithmetic-coded JPEG, over Huffman-coded data."""
    data = bytearray(_jpeg())
    data[data.index(b"\xff\xc0") + 1] = 0xC9
    return bytes(data)


def _bad_exif() -> bytes:
    data = _jpeg()
    rubbish = b"Exif\x00\x00MM\x00*" + b"\xff" * 40
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(rubbish) + 2) + rubbish + data[2:]


def _flipped(data: bytes, share: float) -> bytes:
    """Some bytes of the last part overwritten with zeros."""
    start = int(len(data) * share)
    return data[:start] + b"\x00" * 40 + data[start + 40 :]


def _animated(kind: str) -> bytes:
    return _saved(_photo(), kind, save_all=True, append_images=[_photo().rotate(90)])


def _deep() -> Image.Image:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, axis=0)
    return Image.fromarray(ramp)


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero_bytes.jpg": (lambda: b"", NOTHING),
    "one_byte.jpg": (lambda: b"\xff", NOTHING),
    "page.jpg": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", NOTHING),
    "xml.jpg": (lambda: b"<?xml version='1.0'?><Error>AccessDenied</Error>", NOTHING),
    "json.jpg": (lambda: b'{"error": "gone"}', NOTHING),
    "text.jpg": (lambda: b"not found\n", NOTHING),
    "zeros.jpg": (lambda: bytes(5000), NOTHING),
    "noise.jpg": (lambda: np.random.default_rng(1).bytes(5000), NOTHING),
    "pointer.jpg": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        NOTHING,
    ),
    "only_start.jpg": (lambda: b"\xff\xd8", NOTHING),
    "start_and_end.jpg": (lambda: b"\xff\xd8\xff\xd9", NOTHING),
    "header_only.jpg": (lambda: _cut(_jpeg(), 0.05), NOTHING),
    "half.jpg": (lambda: _cut(_noisy("JPEG"), 0.5), PARTLY),
    "no_end.jpg": (lambda: _noisy("JPEG")[:-200], PARTLY),
    "progressive_half.jpg": (lambda: _cut(_jpeg(progressive=True), 0.7), PARTLY),
    "claims_60000.jpg": (lambda: _jpeg_claiming(60_000, 60_000), NOTHING),
    "claims_no_height.jpg": (lambda: _jpeg_claiming(96, 0), NOTHING),
    "half.png": (lambda: _cut(_noisy("PNG"), 0.5), NOTHING),
    "signature_only.png": (lambda: b"\x89PNG\r\n\x1a\n", NOTHING),
    "claims_100000.png": (lambda: _png_claiming(100_000, 100_000), NOTHING),
    "bomb.png": (lambda: _png_claiming(30_000, 30_000, bytes(4_000_000)), NOTHING),
    "no_data.png": (lambda: _png_claiming(40, 40), NOTHING),
    "zero_width.png": (lambda: _png_claiming(0, 40), NOTHING),
    "bad_checksum.png": (lambda: _flipped(_noisy("PNG"), 0.5), NOTHING),
    "half.gif": (lambda: _cut(_noisy("GIF"), 0.3), NOTHING),
    "half.webp": (lambda: _cut(_noisy("WEBP"), 0.5), NOTHING),
    "half.bmp": (lambda: _cut(_noisy("BMP"), 0.5), NOTHING),
    "half.tiff": (lambda: _cut(_noisy("TIFF"), 0.5), NOTHING),
    "archive.jpg": (lambda: b"PK\x03\x04" + bytes(200), NOTHING),
    "document.jpg": (lambda: b"%PDF-1.7\n" + bytes(200), NOTHING),
    "video.jpg": (lambda: b"\x00\x00\x00 ftypisom" + bytes(200), NOTHING),
    "drawing.jpg": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
        NOTHING,
    ),
    "plain.jpg": (_jpeg, PIXELS),
    "progressive.jpg": (lambda: _jpeg(progressive=True), PIXELS),
    "trailing_rubbish.jpg": (lambda: _jpeg() + b"\x00rubbish" * 90, PIXELS),
    "bad_exif.jpg": (_bad_exif, PIXELS),
    "cmyk.jpg": (lambda: _saved(_photo().convert("CMYK"), "JPEG"), PIXELS),
    "grey.jpg": (lambda: _saved(_photo().convert("L"), "JPEG"), PIXELS),
    "one_pixel.jpg": (lambda: _saved(_photo().resize((1, 1)), "JPEG"), PIXELS),
    "stripe.jpg": (lambda: _saved(_photo().resize((3000, 2)), "JPEG"), PIXELS),
    "pole.png": (lambda: _saved(_photo().resize((1, 5000)), "PNG"), PIXELS),
    "png_inside.jpg": (lambda: _saved(_photo(), "PNG"), PIXELS),
    "palette.png": (lambda: _saved(_photo().convert("P"), "PNG"), PIXELS),
    "transparent.png": (lambda: _saved(_photo().convert("RGBA"), "PNG"), PIXELS),
    "grey_alpha.png": (lambda: _saved(_photo().convert("LA"), "PNG"), PIXELS),
    "one_bit.png": (lambda: _saved(_photo().convert("1"), "PNG"), PIXELS),
    "deep.png": (lambda: _saved(_deep(), "PNG"), PIXELS),
    "deep.tiff": (lambda: _saved(_deep(), "TIFF"), PIXELS),
    "float.tiff": (lambda: _saved(_photo().convert("F"), "TIFF"), PIXELS),
    "lab.tiff": (lambda: _saved(_photo().convert("LAB"), "TIFF"), PIXELS),
    "animated.gif": (lambda: _animated("GIF"), PIXELS),
    "animated.webp": (lambda: _animated("WEBP"), PIXELS),
    "animated.png": (lambda: _animated("PNG"), PIXELS),
    "photo.bmp": (lambda: _saved(_photo(), "BMP"), PIXELS),
    "photo.avif": (lambda: _saved(_photo(), "AVIF"), PIXELS),
    "photo.jp2": (lambda: _saved(_photo(), "JPEG2000"), NOTHING),
    "photo.ppm": (lambda: _saved(_photo(), "PPM"), NOTHING),
    "icon.ico": (lambda: _saved(_photo(), "ICO"), NOTHING),
    # Either is right: some builds of libjpeg read these, and what is shown depends on the build.
    "arithmetic.jpg": (_arithmetic, ""),
    "zeroed_middle.jpg": (lambda: _flipped(_noisy("JPEG"), 0.5), ""),
}


def write_files(folder: Path) -> dict[str, str]:
    """Write all of them, and a folder, a link to nothing and a loop; what is to be expected."""
    folder.mkdir(parents=True)
    for name, (make, _) in FILES.items():
        (folder / name).write_bytes(make())
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    expected = {name: outcome for name, (_, outcome) in FILES.items()}
    odd = ("folder.jpg", "dangling.jpg", "loop.jpg", "missing.jpg", "a" * 300 + ".jpg")
    return {**expected, **dict.fromkeys(odd, NOTHING)}
