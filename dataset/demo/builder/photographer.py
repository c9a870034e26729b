"""Worker processes: make all photos of one product and write them as JPEGs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.demo.builder import boxes, clutter, scenes, studio
from dataset.demo.builder.catalogue import Product, stable_seed
from dataset.demo.builder.meshes import ModelStore
from dataset.demo.builder.plan import Photo, photos_of
from dataset.demo.builder.rendering import Stage

SELLER_QUALITY = (72, 86)


@dataclass(frozen=True)
class Worker:
    """What a worker keeps between products."""

    stage: Stage
    store: ModelStore
    pools: dict[str, list[Product]]
    output: Path


_worker: list[Worker] = []


def start(products: list[Product], output: Path) -> None:
    """Prepare this process; products give the clutter, each split from its own side."""
    pools = {
        split: clutter.clutter_pool([p for p in products if p.split == split])
        for split in ("train", "development")
    }
    _worker[:] = [Worker(Stage(), ModelStore(), pools, output)]


def photograph(product: Product) -> dict[str, boxes.Box]:
    """Write all photos of the product; boxes of its user photos by file name."""
    found: dict[str, boxes.Box] = {}
    for photo in photos_of(product):
        if photo.kind == "seller":
            _seller(_worker[0], photo)
        else:
            found[photo.name] = _user(_worker[0], photo)
    return found


def _save(pixels: np.ndarray, path: Path, quality: int) -> None:
    Image.fromarray(pixels).save(path, "JPEG", quality=quality, optimize=True)


def _seller(worker: Worker, photo: Photo) -> None:
    rng = np.random.default_rng(stable_seed("save", photo.name))
    pixels = studio.seller_photo(worker.stage, worker.store, photo.product, photo.index)
    _save(pixels, worker.output / photo.path, int(rng.integers(*SELLER_QUALITY)))


def _user(worker: Worker, photo: Photo) -> boxes.Box:
    rng = np.random.default_rng(stable_seed("save", photo.name))
    pool = worker.pools[photo.product.split]
    shot = scenes.user_photo(worker.stage, worker.store, photo.product, photo.index, pool)
    pixels, box = shot.pixels, shot.box
    if photo.cropped:
        height, width = pixels.shape[:2]
        x, y, w, h = boxes.with_context(rng, box, width, height)
        pixels = pixels[y : y + h, x : x + w]
    _save(pixels, worker.output / photo.path, shot.quality)
    return box
