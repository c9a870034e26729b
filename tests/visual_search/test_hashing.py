from __future__ import annotations

import io
import logging
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_product
from visual_search import hashing
from visual_search.hashing import hash_of, hash_photos, hash_text, photo_hash, resized
from visual_search.images import UnreadableImage

imagehash = pytest.importorskip("imagehash")


def imagededup_hash(path: Path) -> str:
    methods = pytest.importorskip("imagededup.methods")
    logging.disable(logging.INFO)
    try:
        return str(methods.PHash(verbose=False).encode_image(image_file=path))
    finally:
        logging.disable(logging.NOTSET)


def photos_of_all_kinds(folder: Path) -> list[Path]:
    """Drawn photos: sizes below and above 32, wide, high, grey, transparent, palettes, flat."""
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(8, 5), (32, 32), (33, 64), (640, 41), (100, 640), (301, 517)]):
        noise = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        for ending, mode in (("jpg", "RGB"), ("png", "L"), ("png", "RGBA"), ("gif", "P")):
            paths.append(folder / f"{i}_{mode}.{ending}")
            image.convert(mode).save(paths[-1])
    for name, colour in (("black", 0), ("white", 255), ("grey", 93)):
        paths.append(folder / f"{name}.png")
        Image.new("L", (50, 70), colour).save(paths[-1])
    paths.append(folder / "stripes.png")
    Image.fromarray(np.tile(np.arange(96, dtype=np.uint8)[None], (80, 1))).save(paths[-1])
    for product in range(6):
        paths.append(folder / f"product_{product}.jpg")
        draw_product(product, 1, 200).save(paths[-1], quality=80)
    return paths


def test_hashes_equal_those_of_both_packages(tmp_path: Path) -> None:
    for path in photos_of_all_kinds(tmp_path):
        with Image.open(path) as image:
            assert hash_text(photo_hash(path)) == str(imagehash.phash(image)), path.name
        assert hash_text(photo_hash(path, "imagededup")) == imagededup_hash(path), path.name


def test_hashes_of_real_photos_equal_those_of_both_packages(real_half: Path) -> None:
    paths = sorted(real_half.glob("gallery/*")) + sorted(real_half.glob("queries/*"))
    for path in random.Random(0).sample(paths, 60):
        with Image.open(path) as image:
            assert hash_text(photo_hash(path)) == str(imagehash.phash(image)), path.name
        assert hash_text(photo_hash(path, "imagededup")) == imagededup_hash(path), path.name


def test_the_resize_equals_pillows_at_full_contrast() -> None:
    assert hashing._products_equal_pillow()
    rng = np.random.default_rng(1)
    for _ in range(60):
        width = int(rng.integers(1, 700))
        height = int(rng.integers(1, max(int(hashing.HIGHEST_ASPECT * width), 2)))
        # Blocks of black and white: over- and undershoot, and many sums near a half.
        pixels = rng.choice(np.array([0, 1, 128, 254, 255], dtype=np.uint8), (height, width))
        theirs = Image.fromarray(pixels).resize((32, 32), Image.Resampling.LANCZOS)
        assert np.array_equal(resized(pixels), np.asarray(theirs)), (height, width)


def test_another_arithmetic_in_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then Pillow itself resizes, and the hash stays what the packages say."""
    hashing._products_equal_pillow.cache_clear()
    monkeypatch.setattr(hashing, "resized", lambda pixels: np.zeros((32, 32), dtype=np.uint8))
    try:
        assert not hashing._products_equal_pillow()
        image = draw_product(3, 3, 90)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert hash_text(hash_of(buffer.getvalue())) == str(imagehash.phash(image))
    finally:
        hashing._products_equal_pillow.cache_clear()


def test_copies_are_near_and_others_far(real_half: Path, tmp_path: Path) -> None:
    paths = sorted(real_half.glob("gallery/*"))[:40]
    for path in paths:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((image.width * 2 // 3, image.height * 2 // 3))
            small.save(tmp_path / f"{path.stem}.jpg", quality=60)
    first = [photo_hash(path) for path in paths]
    copies = [photo_hash(tmp_path / f"{path.stem}.jpg") for path in paths]
    assert max((a ^ b).bit_count() for a, b in zip(first, copies, strict=True)) <= 4
    apart = [(a ^ b).bit_count() for i, a in enumerate(first) for b in first[:i]]
    assert np.median(apart) > 20


def test_unreadable_photos_are_answers(tmp_path: Path) -> None:
    good, cut, text, gone = (tmp_path / f"{name}.jpg" for name in ("good", "cut", "text", "gone"))
    draw_product(1, 1, 200).save(good)
    cut.write_bytes(good.read_bytes()[:-900])
    text.write_text("<html>not found</html>")
    answers = list(hash_photos([good, cut, text, gone]))
    assert answers[0] == photo_hash(good)
    assert [isinstance(answer, UnreadableImage) for answer in answers] == [False, True, True, True]
    assert "web page" in str(answers[2])
