"""Files as they come from users, shops and broken disks, beside the hostile ones of all readers."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import draw_product
from tests.hostile import HOSTILE, make_hostile, png

PIXELS, PARTLY, NOTHING = "pixels", "partly", "nothing"
"""Read without a word; read and told; replaced by grey and told."""
PHOTO = draw_product(3, 1, 96)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))


def _saved(kind: str, image: Image.Image = PHOTO, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def _zeroed(data: bytes) -> bytes:
    """Some bytes in the middle overwritten."""
    return data[: len(data) // 2] + bytes(40) + data[len(data) // 2 + 40 :]


JPEG = _saved("JPEG")
RUBBISH = b"Exif\x00\x00MM\x00*" + b"\xff" * 40
EXIF = b"\xff\xe1" + struct.pack(">H", len(RUBBISH) + 2) + RUBBISH
TURNED: dict[str, Any] = {"save_all": True, "append_images": [PHOTO.rotate(90)]}
FILES: dict[str, dict[str, bytes]] = {
    NOTHING: {
        **{f"half.{kind}": _cut(_saved(kind, NOISE), 0.5) for kind in ("PNG", "WEBP", "BMP")},
        **{f"half.{kind}": _cut(_saved(kind, NOISE), 0.3) for kind in ("GIF", "TIFF")},
        **{f"whole.{kind}": _saved(kind) for kind in ("JPEG2000", "PPM", "ICO")},
        "one_byte.jpg": b"\xff",
        "xml.jpg": b"<?xml version='1.0'?><Error>AccessDenied</Error>",
        "zeros.jpg": bytes(5000),
        "noise.jpg": np.random.default_rng(1).bytes(5000),
        "start_and_end.jpg": b"\xff\xd8\xff\xd9",
        "header_only.jpg": _cut(JPEG, 0.05),
        "no_data.png": png(40, 40, pixels=False),
        "zero_width.png": png(0, 40),
        "bad_checksum.png": _zeroed(_saved("PNG", NOISE)),
        "archive.jpg": b"PK\x03\x04" + bytes(200),
        "document.jpg": b"%PDF-1.7\n" + bytes(200),
        "drawing.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
    },
    PARTLY: {
        "half.jpg": _cut(_saved("JPEG", NOISE), 0.5),
        "no_end.jpg": _saved("JPEG", NOISE)[:-200],
        "progressive_half.jpg": _cut(_saved("JPEG", progressive=True), 0.7),
    },
    PIXELS: {
        **{f"whole.{kind}": _saved(kind) for kind in ("JPEG", "PNG", "BMP", "AVIF")},
        **{f"mode_{mode}.png": _saved("PNG", PHOTO.convert(mode)) for mode in ("L", "LA", "1")},
        **{f"mode_{mode}.tiff": _saved("TIFF", PHOTO.convert(mode)) for mode in ("F", "LAB")},
        **{f"animated.{kind}": _saved(kind, **TURNED) for kind in ("GIF", "WEBP", "PNG")},
        "trailing_rubbish.jpg": JPEG + b"\x00rubbish" * 90,
        "bad_exif.jpg": JPEG[:2] + EXIF + JPEG[2:],
        "one_pixel.jpg": _saved("JPEG", PHOTO.resize((1, 1))),
        "stripe.jpg": _saved("JPEG", PHOTO.resize((3000, 2))),
        "pole.png": _saved("PNG", PHOTO.resize((1, 5000))),
    },
    # Either is right: it depends on the build of libjpeg.
    "": {"zeroed_middle.jpg": _zeroed(_saved("JPEG", NOISE))},
}


def write_files(folder: Path) -> dict[str, str]:
    """Write all of them; what is to be expected of each."""
    for name in HOSTILE:
        make_hostile(folder, name)
    expected = dict.fromkeys([*HOSTILE, "missing.jpg", "a" * 300 + ".jpg"], NOTHING)
    for outcome, files in FILES.items():
        for name, data in files.items():
            (folder / name).write_bytes(data)
            expected[name] = outcome
    return expected
