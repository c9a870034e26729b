"""Queries as people type them to words that can be counted and compared.

    clean("Стол-книжка 140 х 200см, БЕЛЫЙ!!! https://shop.example", "ru")
    # "стол-книжка 140x200 см белый"

What stays: letters of any script, ё, digits, sizes. What goes: links, hashtags, marks and signs.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from visual_search.common.errors import UserError
from visual_search.common.ranges import Count, CountFrom1, Share, ShareBelow1, Workers, check_ranges


@dataclass(frozen=True)
class CleaningRules:
    """How far cleaning goes.

    Attributes:
        lemmas: whether words are put into their dictionary form.
        min_lemma_score: a word stays as it is where its likeliest lemma is less likely than this.
        stop_words: whether words that name nothing are dropped.
    """

    lemmas: bool = True
    min_lemma_score: Share = 0.5
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
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
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
        language: ISO 639-1, for stop words and lemmas; one that is unknown has neither.
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
    text = _CONTROL.sub(" ", _FRACTION.sub(" ", html.unescape(text))).replace("№", " ")
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


UNDETERMINED = "und"
"""No letters, or none of the languages asked about (ISO 639-2)."""

_CYRILLIC = re.compile(r"[\u0400-\u052f]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")

CYRILLIC_LANGUAGES = frozenset({"be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "uk"})
_LATIN_CODES = (
    "az bs ca cs cy da de en es et eu fi fr ga hr hu id is it lt lv ms mt nb nl nn no pl pt ro "
    "sk sl sq sv sw tl tr vi"
)
LATIN_LANGUAGES = frozenset(_LATIN_CODES.split())

# Letters that only some Cyrillic alphabets have.
_LETTERS = {"uk": "[іїєґ]", "be": "ў", "kk": "[әғқңөұүһ]", "ru": "[ыэъё]"}
_TELLING = {language: re.compile(letters, re.I) for language, letters in _LETTERS.items()}

_KEPT = "без не нет ни один два три no not nor without ohne kein sans sin senza"
KEPT = frozenset(_KEPT.split())
"""Stop words of some lists that change what is seen: "без рукавов" is another dress."""

_MORPHY = frozenset({"ru", "uk"})


def language_of(text: str, languages: tuple[str, ...] = ("ru", "en")) -> str:
    """Which of some languages (ISO 639-1) a raw or cleaned text is in, or :data:`UNDETERMINED`.

    The first is preferred where letters tell nothing.
    """
    cyrillic, latin = len(_CYRILLIC.findall(text)), len(_LATIN.findall(text))
    if cyrillic >= latin and cyrillic:
        there = [name for name in languages if name in CYRILLIC_LANGUAGES]
        telling = [name for name in there if name in _TELLING and _TELLING[name].search(text)]
        there = telling or there
    elif latin:
        there = [name for name in languages if name in LATIN_LANGUAGES]
    elif any(letter.isalpha() for letter in text):
        known = CYRILLIC_LANGUAGES | LATIN_LANGUAGES
        there = [name for name in languages if name not in known]
    else:
        there = []
    if len(there) < 2:
        return there[0] if there else UNDETERMINED
    found: str = _identifier(tuple(there)).classify(text)[0]
    return found


@functools.cache
def _identifier(languages: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    try:
        identifier.set_languages(languages)
    except ValueError as error:
        raise UserError(f"languages: {error}; name languages by ISO 639-1, such as ru") from error
    return identifier


@functools.cache
def stop_words(language: str) -> frozenset[str]:
    """Words of a language that name nothing, less :data:`KEPT`; empty where no list is known."""
    from bm25s.tokenization import Tokenizer

    # Snowball's and NLTK's lists. They hold only words that name nothing; longer lists take
    # "table", "white" and "big" for stop words.
    try:
        known = Tokenizer(stopwords="en_plus" if language == "en" else language).stopwords
    except ValueError:
        return frozenset()
    return frozenset(known) - KEPT


@functools.lru_cache(maxsize=200_000)
def lemma(word: str, language: str, min_score: float = 0.5) -> str:
    """The dictionary form of a lower-case word: "кресла" is "кресло".

    For Russian and Ukrainian pymorphy3 gives every reading of a form with its probability. Those of
    one lemma are added up first: "кресла" is 0.5 genitive and 0.5 plural, and both are "кресло". A
    word stays as it is where its likeliest lemma is less likely than `min_score`.
    """
    if language in _MORPHY:
        if not _CYRILLIC.search(word):
            return word
        scores: dict[str, float] = {}
        for reading in _analyzer(language).parse(word):
            scores[reading.normal_form] = scores.get(reading.normal_form, 0.0) + reading.score
        best = max(scores, key=lambda form: scores[form])
        # The sum of many probabilities can fall a little short of what it is.
        return best if scores[best] >= min_score - 1e-9 else word
    if language in LATIN_LANGUAGES and _LATIN.search(word):
        import simplemma

        try:
            return simplemma.lemmatize(word, language).lower()
        except ValueError:  # a language that it does not know
            return word
    return word


@functools.cache
def _analyzer(language: str) -> Any:
    import pymorphy3

    try:
        return pymorphy3.MorphAnalyzer(lang=language)
    except ValueError as error:
        raise UserError(
            f"there are no dictionaries for lemmas of {language!r}: pip install "
            f"pymorphy3-dicts-{language}, or leave it out of `languages`"
        ) from error


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
        max_photo_share: a query at more than this share of all images tells them not apart; 1: any.
        min_common_photos: … and at no fewer images than this.
    """

    max_words: CountFrom1 = 30
    asking_words: str = ASKING_WORDS
    max_photo_share: Share = 0.01
    min_common_photos: Count = 1000


def why_uninformative(text: str, rules: QueryRules) -> str | None:
    """The reason to drop a cleaned query, or None."""
    words = text.split()
    if not words:
        return "nothing is left after cleaning"
    if len(words) > rules.max_words:
        return "too many words"
    if all(_NUMBER.match(word) or word in UNITS for word in words) and _NUMBER.match(words[0]):
        return "numbers, sizes and units only"
    if len(text) == 1:
        return "a single letter"
    if all(_MASHED.search(word) for word in words):
        return "one letter over and over"
    if set(rules.asking_words.split()).issuperset(words):
        return "only words of asking"
    return None


@dataclass(frozen=True)
class CleaningConfig:
    """The whole job; `config/image_text/cleaning.yml` has all keys.

    Attributes:
        languages: that may occur, ISO 639-1.
        words: what becomes of a query's words.
        drop: which queries say nothing.
        test_share: of all images, by groups.
        workers: processes; 0 is one for each core.
    """

    languages: list[str] = field(default_factory=lambda: ["ru", "en"])
    words: CleaningRules = field(default_factory=CleaningRules)
    drop: QueryRules = field(default_factory=QueryRules)
    test_share: ShareBelow1 = 0.02
    workers: Workers = 0

    def __post_init__(self) -> None:
        check_ranges(self)
