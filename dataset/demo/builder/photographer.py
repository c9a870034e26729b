"""Worker processes: make all photos of one product and write them as JPEGs."""

from pathlib import Path

import numpy as np
from PIL import Image

from dataset.demo.builder import plan, scenes, studio
from dataset.demo.builder.catalogue import Product, stable_seed
from dataset.demo.builder.views import Box, widened

SELLER_QUALITY = (72, 86)


def photograph(product: Product, products: list[Product], output: Path) -> dict[str, Box]:
    """Write all photos of a product, others of `products` about it; boxes of user photos by name.

    User photos of Product10K are cut out with 5-25 % of what is round the box on each side.
    """
    boxes: dict[str, Box] = {}
    for photo in plan.photos_of(product):
        rng = np.random.default_rng(stable_seed("save", photo.name))
        if photo.kind == "seller":
            pixels = studio.seller_photo(product, photo.index)
            quality = int(rng.integers(*SELLER_QUALITY))
        else:
            pixels, box, quality = scenes.user_photo(product, photo.index, products)
            boxes[photo.name] = box
            if photo.folder != plan.QUERIES:
                height, width = pixels.shape[:2]
                x, y, w, h = widened(rng, box, width, height, 0.05, 0.25)
                pixels = pixels[y : y + h, x : x + w]
        path = output / photo.folder / photo.name
        Image.fromarray(pixels).save(path, "JPEG", quality=quality, optimize=True)
    return boxes
