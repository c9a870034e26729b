"""Which side a product falls on; which photos are made of it, where they go, under which names."""

import hashlib
import random
from dataclasses import dataclass, replace

import numpy as np

from dataset.demo.builder.catalogue import Product, stable_seed

DEVELOPMENT_SHARE = 0.31
TRAIN, TEST = "Product10K/train", "Product10K/test"
GALLERY, QUERIES = "development_test_data/gallery", "development_test_data/queries"


def split(products: list[Product]) -> list[Product]:
    """The products with their side filled in: "train" or "development".

    Look-alikes fall on the same side. Their groups are shuffled by a fixed seed within their first
    product's category, and every category gives its share, so that both sides hold the same mix.
    """
    groups: dict[str, list[str]] = {}
    for product in products:
        groups.setdefault(product.look_alike, []).append(product.key)
    categories = {product.key: product.category for product in products}
    decks: dict[str, list[list[str]]] = {}
    for keys in groups.values():
        decks.setdefault(categories[keys[0]], []).append(keys)
    share = round(DEVELOPMENT_SHARE * len(products)) / max(1, len(products))
    sides: dict[str, str] = {}
    for category, deck in decks.items():
        deck.sort()
        random.Random(stable_seed("split", category)).shuffle(deck)
        wanted, taken = share * sum(map(len, deck)), 0
        for keys in deck:
            side = "development" if taken + len(keys) / 2 <= wanted else "train"
            taken += len(keys) if side == "development" else 0
            sides.update(dict.fromkeys(keys, side))
    return [replace(product, split=sides[product.key]) for product in products]


@dataclass(frozen=True)
class Photo:
    """One photo to make: kind is "seller" or "user", index tells apart those of one product."""

    product: Product
    kind: str
    index: int
    folder: str

    @property
    def name(self) -> str:
        """File name that tells neither the product nor the order."""
        text = f"{self.product.key}\x1f{self.kind}\x1f{self.index}"
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest() + ".jpg"


def photos_of(product: Product) -> list[Photo]:
    """All photos of one product; how many varies from product to product."""
    rng = np.random.default_rng(stable_seed("plan", product.key))
    trains = product.split == "train"
    counts = {"seller": int(rng.choice([1, 1, 2] if trains else [1, 2, 2]))}
    counts["user"] = int(rng.choice([2, 3, 3]))
    folders = {"seller": TRAIN if trains else GALLERY, "user": TRAIN if trains else QUERIES}
    photos = [
        Photo(product, kind, i, folders[kind]) for kind in counts for i in range(counts[kind])
    ]
    if trains:
        held_out = "seller" if rng.random() < 0.25 else "user"
        photos.append(Photo(product, held_out, counts[held_out], TEST))
    return photos


def shuffled(photos: list[Photo], folder: str) -> list[Photo]:
    """The photos of one folder in an order that tells nothing, the same every time."""
    chosen = sorted((photo for photo in photos if photo.folder == folder), key=lambda p: p.name)
    random.Random(stable_seed("order", folder)).shuffle(chosen)
    return chosen
