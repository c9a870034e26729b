"""Queries as people type them to words that can be counted and compared.

    clean("Стол-книжка 140 х 200см, БЕЛЫЙ!!! https://shop.example", "ru")
    # "стол-книжка 140x200 см белый"

What stays: letters of any script, ё, digits, sizes. What goes: links, hashtags, marks and signs.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from visual_search.text_languages import lemma, stop_words


@dataclass(frozen=True)
class CleaningRules:
    """How far cleaning goes.

    Attributes:
        lemmas: whether words are put into their dictionary form.
        min_lemma_score: a word stays as it is where its likeliest lemma is less likely than this.
        stop_words: whether words that name nothing are dropped.
    """

    lemmas: bool = True
    min_lemma_score: float = 0.5
    stop_words: bool = True


_TAG = re.compile(r"</?[a-z][^<>]*>")
_LINK = re.compile(
    r"(?:https?://|www\.)\S+"  # with a scheme
    r"|\S+@\S+\.\w+"  # a mail address
    r"|\b[\w-]+(?:\.[\w-]+)*\.(?:ru|com|net|org|su|info|by|kz|ua|рф|shop|online)\b(?:/\S*)?"
)
_HASHTAG = re.compile(r"(?<!\w)[#@]\w+")
# 5½ is five and a half, not 51/2; and the acute accent only shows where the stress lies.
_FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_STRESS = re.compile(r"(?<=[\u0400-\u052f])[\u0300\u0301]")
# Soft hyphens, joiners, marks of direction, byte order marks.
_UNSEEN = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_INCHES = re.compile(r"(?<=\d)\s*(?:″|''|”|“|\")")
_UNIT = (
    r"мм|см|дм|м|км|мкм|г|гр|кг|мг|мл|л|вт|квт|в|а|ач|мач|гц|мгц|ггц|кб|мб|гб|тб|шт|лет|мес|"
    r"mm|cm|m|km|g|kg|mg|ml|l|oz|lb|ft|w|kw|v|mah|hz|mhz|ghz|kb|mb|gb|tb|pcs|px"
)
UNITS = frozenset(_UNIT.split("|"))
"""Of sizes, weights, power …: no words where they follow a number."""
_TIMES = re.compile(rf"(?<=\d)\s*(?:{_UNIT})?\s*[xх×*]\s*(?=\d)")
_DECIMAL = re.compile(r"(?<![\d.,])(\d+),(\d+)(?![\d.,]*\d)")
_NUMBER_UNIT = re.compile(rf"(?<![^\W\d_])(\d+)\s*({_UNIT})(?!\w)")
_TOKEN = re.compile(
    r"\d+(?:\.\d+)?(?:x\d+(?:\.\d+)?)+"  # 140x200, 1.5x2
    r"|\d+(?:/\d+)+"  # 42/44
    r"|\d+\.\d+[%\"]?"  # 1.5
    r"|\d+[%\"]"  # 100%, 55"
    r"|[^\W_]+(?:[-'’][^\W_]+)*"  # words: тёмно-синий, wi-fi, 3d, a4
)
_TWO_SCRIPTS = re.compile(r"(?=.*[a-z])(?=.*[\u0400-\u052f])")
_LIKE_LATIN = str.maketrans("асеорхуктнмві", "aceopxyktnmbi")
_LIKE_CYRILLIC = str.maketrans("aceopxyktnmbi", "асеорхуктнмві")


def clean(text: str, language: str = "ru", rules: CleaningRules | None = None) -> str:
    """The words of a query, separated by single spaces; empty where none is left.

    Args:
        text: as typed.
        language: ISO 639-1, for stop words and lemmas; one that is unknown has neither.
        rules: how far to go; all of it when None.
    """
    return clean_words(words_of(text), language, rules or CleaningRules())


def clean_words(words: Sequence[str], language: str, rules: CleaningRules) -> str:
    """What :func:`clean` makes of the words of a text."""
    dropped = stop_words(language) if rules.stop_words else frozenset()
    kept: list[str] = []
    number = False
    for word in words:
        if number and word in UNITS:  # "200 см" is no form of "смотреть"
            kept.append(word)
        elif word not in dropped:
            kept.append(lemma(word, language, rules.min_lemma_score) if rules.lemmas else word)
        number = word[0].isdigit()
    return " ".join(kept)


def words_of(text: str) -> list[str]:
    """Words, numbers and sizes of a text, lower case, in their order; nothing is left out."""
    return [_one_script(found) for found in _TOKEN.findall(normalized(text))]


def normalized(text: str) -> str:
    """Lower case in one spelling, without links, hashtags and what cannot be seen."""
    text = _FRACTION.sub(" ", html.unescape(text)).replace("№", " ")
    text = _INCHES.sub('"', text)
    # Composes й and ё out of letter and mark, and makes ² and full-width letters plain ones.
    text = unicodedata.normalize("NFKC", text).lower()
    text = _STRESS.sub("", _UNSEEN.sub("", text)).replace("⁄", "/")
    for pattern in (_TAG, _LINK, _HASHTAG):
        text = pattern.sub(" ", text)
    text = _TIMES.sub("x", text)
    text = _DECIMAL.sub(r"\1.\2", text)
    return _NUMBER_UNIT.sub(r"\1 \2", text)


def _one_script(word: str) -> str:
    """A word typed on two keyboard layouts, all in the script that its telling letters are of."""
    if not _TWO_SCRIPTS.match(word):
        return word
    for spelling in (word.translate(_LIKE_LATIN), word.translate(_LIKE_CYRILLIC)):
        if not _TWO_SCRIPTS.match(spelling):
            return spelling
    return word
