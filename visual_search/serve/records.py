"""What an index speaks of: products and their images, models, filters, hits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, JsonValue, ValidationError
from pydantic_core import from_json

from visual_search.common.errors import UserError
from visual_search.data.images import Box, ImageItem
from visual_search.data.values import id_of, value_of
from visual_search.serve.calibration import Calibration


def _storable(value: Any) -> Any:
    """PostgreSQL stores neither zero bytes nor halves of characters."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if "\\u0000" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("it has a character that cannot be stored")
    return value


def _from_form(value: Any) -> Any:
    """A field of a form is text; it is kept with its query, and must not be long."""
    if isinstance(value, str) and len(value) > 2000:
        raise ValueError("it is longer than 2,000 characters")
    return from_json(value) if isinstance(value, str) else value


def _chosen(value: Any) -> Any:
    """An empty field of a form chooses nothing."""
    return [one for one in value if one != ""] if isinstance(value, list) else value


Text = AfterValidator(_storable)
ProductId = Annotated[str, Field(max_length=200), BeforeValidator(id_of), Text]
Category = Annotated[str, Field(max_length=200), AfterValidator(value_of), Text]
Attributes = Annotated[dict[str, JsonValue], Text]
Price = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]
Place = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
Side = Annotated[int, Field(gt=0, lt=1 << 31)]
BoxNumbers = tuple[Place, Place, Side, Side]


@dataclass(frozen=True)
class IndexedImage:
    """One image of a product."""

    path: str
    """Absolute."""
    box: Box | None = None
    fingerprint: str = ""
    """Changes where the file does."""
    problem: str | None = None
    """Why it has no embedding."""
    vectors: Mapping[int, np.ndarray] = field(default_factory=dict)
    """New ones, by model, each `(dimension,)`, of length 1."""
    id: int = 0
    """In the index."""
    product: str = ""

    def __post_init__(self) -> None:
        if self.box is not None:  # a list, as it comes from the database
            object.__setattr__(self, "box", tuple(self.box))

    @classmethod
    def of(cls, item: ImageItem, vectors: Mapping[int, np.ndarray] | None = None) -> IndexedImage:
        """An image file as it stands now: size and time of change tell it from what it was."""
        path = str(item.path.absolute())
        try:
            status = os.stat(path)
        except OSError:
            return cls(path, item.box, "missing")
        state = f"{status.st_size}-{status.st_mtime_ns}"
        return cls(path, item.box, state, vectors=vectors or {})

    def told(self) -> dict[str, Any]:
        """What a row of the table `images` says of it."""
        return {name: getattr(self, name) for name in ("path", "box", "fingerprint", "problem")}

    @property
    def item(self) -> ImageItem:
        """Where it lies."""
        return ImageItem(Path(self.path), self.box)


class Facts(BaseModel, extra="forbid"):
    """What a shop tells of a product: `products.jsonl`, and the body of `PUT /products/{id}`."""

    title: Annotated[str | None, Field(max_length=500), Text] = None
    category: Category | None = None
    price: Price = None
    in_stock: bool | None = None
    attributes: Attributes = {}


class Product(Facts, arbitrary_types_allowed=True):
    """A product, and its images."""

    id: ProductId
    images: list[IndexedImage] = []

    def facts(self) -> dict[str, Any]:
        """All but the images."""
        return {name: getattr(self, name) for name in ("id", *Facts.model_fields)}

    def files(self) -> dict[tuple[ImageItem, str], IndexedImage]:
        """The images by what tells them apart, each once."""
        return {(image.item, image.fingerprint): image for image in self.images}


class _ListedImage(BaseModel, extra="forbid"):
    path: Annotated[str, Field(min_length=1), Text]
    box: BoxNumbers | None = None


def _with_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class ListedProduct(Facts):
    """A line of `products.jsonl`; an image is its path, or an object."""

    id: ProductId
    images: list[Annotated[_ListedImage, BeforeValidator(_with_path)]] = Field(min_length=1)


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
    calibration: Calibration | None

    def __post_init__(self) -> None:
        if isinstance(self.calibration, dict):  # as it comes from the database
            object.__setattr__(self, "calibration", Calibration(**self.calibration))

    @property
    def table(self) -> str:
        """Of its embeddings."""
        return f"embeddings_{self.id:d}"

    @property
    def name(self) -> str:
        """The last part of where it comes from."""
        folder = Path(self.source)
        return folder.parent.name if folder.name in ("best", "last") else folder.name


class Filters(BaseModel, extra="forbid"):
    """Which products may be found; what is None or empty lets all pass."""

    category: Annotated[list[Category], BeforeValidator(_chosen)] = []
    """One of these."""
    price_min: Price = None
    price_max: Price = None
    in_stock: bool | None = None
    attributes: Annotated[Attributes, BeforeValidator(_from_form)] = Field(
        default={}, description="JSON that the product's must contain"
    )

    def given(self) -> dict[str, Any]:
        """Those that are set."""
        return self.model_dump(include=set(Filters.model_fields), exclude_defaults=True)


class Hit(NamedTuple):
    """A product that was found, by one of its images."""

    image: int
    score: float
    """Cosine, -1..1."""
    product: dict[str, Any]
    """What is told of it."""


class StaleModelError(UserError):
    """Another model answers than the one that a product was embedded with."""


def what_is_wrong(error: ValidationError | RequestValidationError) -> str:
    """The first fault that pydantic found, in a few words: where, what, and what stands there."""
    first = error.errors()[0]
    of_request = isinstance(error, RequestValidationError)  # which part of it stands in front
    places = [str(part) for part in first["loc"][of_request:]]
    found = repr(first["input"])[:60]
    told = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(places) or 'the whole'}: {told} (it is {found})"
