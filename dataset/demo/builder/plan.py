"""Which photos are made of which product, where they go and under which names."""

import hashlib
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset.demo.builder.catalogue import Product, split_products, stable_seed

DEVELOPMENT_SHARE = 0.31
TRAIN, TEST = "Product10K/train", "Product10K/test"
GALLERY, QUERIES = "development_test_data/gallery", "development_test_data/queries"


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

    @property
    def path(self) -> Path:
        """Where the photo lies, relative to the data set's folder."""
        return Path(self.folder) / self.name

    @property
    def cropped(self) -> bool:
        """User photos of Product10K are cut out loosely round the product."""
        return self.kind == "user" and self.folder in (TRAIN, TEST)


def assign_splits(products: list[Product]) -> list[Product]:
    """The products with their side filled in: "train" or "development"."""
    sides = split_products(
        {product.key: product.look_alike for product in products},
        {product.key: product.category for product in products},
        round(DEVELOPMENT_SHARE * len(products)),
    )
    return [replace(product, split=sides[product.key]) for product in products]


def photos_of(product: Product) -> list[Photo]:
    """All photos of one product; how many varies from product to product."""
    rng = np.random.default_rng(stable_seed("plan", product.key))
    development = product.split == "development"
    sellers = int(rng.choice([1, 2, 2] if development else [1, 1, 2]))
    users = int(rng.choice([2, 3, 3]))
    if development:
        return [
            *(Photo(product, "seller", i, GALLERY) for i in range(sellers)),
            *(Photo(product, "user", i, QUERIES) for i in range(users)),
        ]
    held_out = ("seller", sellers) if rng.random() < 0.25 else ("user", users)
    return [
        *(Photo(product, "seller", i, TRAIN) for i in range(sellers)),
        *(Photo(product, "user", i, TRAIN) for i in range(users)),
        Photo(product, *held_out, TEST),
    ]


def shuffled(photos: list[Photo], folder: str) -> list[Photo]:
    """The photos of one folder in an order that tells nothing, the same every time."""
    chosen = sorted((photo for photo in photos if photo.folder == folder), key=lambda p: p.name)
    random.Random(stable_seed("order", folder)).shuffle(chosen)
    return chosen
