"""What a review or a product of Amazon's files says about photos, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from dataset.dataset_creation_steps.image_urls import stored_image

# A product's page that was saved as its title: its script begins with `aPageStart.getTime()`.
JUNK = "getTime"

JUNK_ROWS = "junk rows (getTime in the title)"
NO_ASIN = "rows without asin"
NO_PHOTO = "rows without photos"
STRING_FIELDS = "image fields that are a string"
WRONG_FIELDS = "image fields of a wrong type"
WRONG_URLS = "image entries that are no http(s) address"


class Fields(msgspec.Struct, gc=False):
    """The fields that a step looks at; all others are checked for their form and skipped."""

    asin: Any = None
    title: Any = None
    image: Any = None
    imageURL: Any = None
    imageURLHighRes: Any = None


Row = tuple[str, str, list[str]]
"""asin, title and addresses of photos."""

Reader = Callable[[Fields, Counter[str]], Row | None]


def review(fields: Fields, tally: Counter[str]) -> Row | None:
    """The photos of a review, None where there is none to use; `tally` counts why."""
    if not fields.image:
        return None  # most reviews; the lines are counted already
    return _row(fields, addresses(fields.image, tally), tally)


def product(fields: Fields, tally: Counter[str]) -> Row | None:
    """The shop's photos of a product, the large ones where it has them."""
    if isinstance(fields.title, str) and JUNK in fields.title:
        tally[JUNK_ROWS] += 1
        return None
    large = addresses(fields.imageURLHighRes, tally)
    return _row(fields, large or addresses(fields.imageURL, tally), tally)


READERS: dict[str, Reader] = {"reviews": review, "products": product}


def _row(fields: Fields, photos: list[str], tally: Counter[str]) -> Row | None:
    if not isinstance(fields.asin, str) or not fields.asin.strip():
        tally[NO_ASIN] += 1
        return None
    if not photos:
        tally[NO_PHOTO] += 1
        return None
    title = fields.title if isinstance(fields.title, str) else ""
    return fields.asin.strip(), title, photos


def addresses(value: Any, tally: Counter[str]) -> list[str]:
    """The http(s) addresses of an image field: a list, one string, or nothing."""
    if not value:
        return []
    if isinstance(value, str):
        tally[STRING_FIELDS] += 1
        value = [value]
    if not isinstance(value, list):
        tally[WRONG_FIELDS] += 1
        return []
    found = [entry for entry in value if _is_address(entry)]
    if len(found) < len(value):
        tally[WRONG_URLS] += len(value) - len(found)
    return found


def _is_address(entry: Any) -> bool:
    return isinstance(entry, str) and entry.startswith(("http://", "https://"))


def unique_photos(urls: list[str]) -> list[str]:
    """The addresses of different photos, sorted; of one photo in several sizes the first."""
    by_photo: dict[str, str] = {}
    for url in sorted(urls):
        by_photo.setdefault(stored_image(url), url)
    return list(by_photo.values())
