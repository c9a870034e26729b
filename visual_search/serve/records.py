"""What an index speaks of: products, their images, models, filters, hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from visual_search.data.images import Box, ImageItem

CONDITIONS = {
    "categories": "category = ANY(%(categories)s)",
    "price_min": "price >= %(price_min)s",
    "price_max": "price <= %(price_max)s",
    "in_stock": "in_stock = %(in_stock)s",
    "attributes": "attributes @> %(attributes)s",
}
"""Of each filter, on columns of `products`."""


@dataclass(frozen=True)
class IndexedImage:
    """One image of a product."""

    path: str
    """Absolute."""
    box: Box | None = None
    fingerprint: str = ""
    """Changes where the file does."""
    vectors: Mapping[int, np.ndarray] = field(default_factory=dict)
    """By model, `(dimension,)`, of length 1; empty where the image has a problem."""
    problem: str | None = None

    @property
    def item(self) -> ImageItem:
        """Where it lies."""
        return ImageItem(Path(self.path), self.box)


@dataclass(frozen=True)
class Product:
    """What a shop tells of a product."""

    id: str
    title: str | None = None
    category: str | None = None
    price: float | None = None
    in_stock: bool | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    images: Sequence[IndexedImage] = ()

    def facts(self) -> dict[str, Any]:
        """All but the images."""
        return {name: value for name, value in vars(self).items() if name != "images"}


@dataclass(frozen=True)
class IndexedModel:
    """A model whose embeddings the index holds, or is being filled with."""

    id: int
    source: str
    fingerprint: str
    dimension: int
    current: bool
    """Whether it answers."""
    approximate: bool
    """Whether its search goes through an HNSW index."""
    calibration: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The last part of where it comes from."""
        folder = Path(self.source)
        return folder.parent.name if folder.name in ("best", "last") else folder.name


@dataclass(frozen=True)
class Filters:
    """Which products may be found; what is None or empty lets all pass."""

    categories: tuple[str, ...] = ()
    price_min: float | None = None
    price_max: float | None = None
    in_stock: bool | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Those that the product's must contain."""

    def conditions(self) -> tuple[str, dict[str, Any]]:
        """SQL on columns of `products`, and its parameters."""
        values = {
            "categories": list(self.categories) or None,
            "price_min": self.price_min,
            "price_max": self.price_max,
            "in_stock": self.in_stock,
            "attributes": Jsonb(self.attributes) if self.attributes else None,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return " AND ".join(CONDITIONS[name] for name in given), given


@dataclass(frozen=True)
class Hit:
    """A product that was found, by one of its images."""

    image: int
    score: float
    """Cosine, -1..1."""
    product: Product
    """Without its images."""


class StaleModelError(Exception):
    """Another model answers than the one that a product was embedded with."""
