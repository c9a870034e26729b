"""Queries that say nothing of the photo they led to, by rules that can be told.

The rules look at the cleaned query, in this order; the first that holds is the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from visual_search.text_cleaning import UNITS

EMPTY = "nothing is left after cleaning"
LONG = "too many words"
NUMBERS = "numbers, sizes and units only"
SHORT = "a single letter"
MASHED = "one letter over and over"
ASKING = "only words of asking"
REPEATED = "the same query of the same photo"
COMMON = "stands at too many photos"

_MASHED = re.compile(r"^(\w{1,2})\1{3,}$|(\w)\2{4,}")
_NUMBER = re.compile(r"\d+(?:[./x-]\d+)*[%\"]?$")

ASKING_WORDS = (
    "фото фотография фотка картинка изображение рисунок png jpg купить заказать продать цена "
    "стоимость недорого дешевый дёшево скидка распродажа акция доставка каталог отзыв магазин "
    "интернет-магазин интернет онлайн официальный сайт скачать бесплатно бесплатный смотреть "
    "озон вайлдберриз алиэкспресс авито photo picture image buy order price cheap sale discount "
    "delivery shop store online official site download free review ozon wildberries aliexpress "
    "amazon ebay avito"
)
"""What people ask for, and where; lemmas."""


@dataclass(frozen=True)
class QueryRules:
    """Where the rules draw their lines.

    Attributes:
        max_words: of a query.
        asking_words: lemmas, separated by spaces; a query of nothing else is dropped.
        max_photo_share: a query at more than this share of all photos tells them not apart; 1: any.
        min_common_photos: … and at no fewer photos than this.
    """

    max_words: int = 30
    asking_words: str = ASKING_WORDS
    max_photo_share: float = 0.01
    min_common_photos: int = 1000


def why_uninformative(text: str, rules: QueryRules) -> str | None:
    """The reason to drop a query, or None.

    Args:
        text: cleaned.
        rules: where the lines are.
    """
    words = text.split()
    if not words:
        return EMPTY
    if len(words) > rules.max_words:
        return LONG
    if all(_NUMBER.match(word) or word in UNITS for word in words) and _NUMBER.match(words[0]):
        return NUMBERS
    if len(text) == 1:
        return SHORT
    if all(_MASHED.search(word) for word in words):
        return MASHED
    if _asking(rules.asking_words).issuperset(words):
        return ASKING
    return None


_known: dict[str, frozenset[str]] = {}


def _asking(words: str) -> frozenset[str]:
    if words not in _known:
        _known[words] = frozenset(words.split())
    return _known[words]


def informative(texts: Sequence[str], rules: QueryRules) -> list[tuple[int, str | None]]:
    """The queries of one photo: number, and the reason to drop it or None."""
    seen: set[str] = set()
    found: list[tuple[int, str | None]] = []
    for number, text in enumerate(texts):
        reason = why_uninformative(text, rules)
        if reason is None and text in seen:
            reason = REPEATED
        seen.add(text)
        found.append((number, reason))
    return found
