"""What depends on a text's language: which one it is, its stop words, its lemmas.

Queries are too short for a guess by letters alone, so the script decides first: of the languages
that may occur, only those written in the text's script are asked about.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from visual_search.errors import UserError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier
    from pymorphy3 import MorphAnalyzer

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
_TELLING = {
    "uk": re.compile(r"[іїєґ]", re.I),
    "be": re.compile(r"ў", re.I),
    "kk": re.compile(r"[әғқңөұүһ]", re.I),
    "ru": re.compile(r"[ыэъё]", re.I),
}

# Snowball's and NLTK's lists. They hold only words that name nothing; longer lists take
# "table", "white" and "big" for stop words.
_STOP_LISTS = {
    "da": "DANISH",
    "de": "GERMAN",
    "en": "EN_PLUS",
    "es": "SPANISH",
    "fr": "FRENCH",
    "it": "ITALIAN",
    "nl": "DUTCH",
    "no": "NORWEGIAN",
    "pt": "PORTUGUESE",
    "ru": "RUSSIAN",
    "sv": "SWEDISH",
    "tr": "TURKISH",
}

_KEPT = "без не нет ни один два три no not nor without ohne kein sans sin senza"
KEPT = frozenset(_KEPT.split())
"""Stop words of some lists that change what is seen: "без рукавов" is another dress."""

_MORPHY = frozenset({"ru", "uk"})


def language_of(text: str, languages: tuple[str, ...] = ("ru", "en")) -> str:
    """Which of some languages a text is in.

    Args:
        text: raw or cleaned.
        languages: that may occur, ISO 639-1; the first is preferred where letters tell nothing.

    Returns:
        One of `languages`, or :data:`UNDETERMINED`.
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
def _identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
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
    if language not in _STOP_LISTS:
        return frozenset()
    from bm25s import stopwords

    return frozenset(getattr(stopwords, f"STOPWORDS_{_STOP_LISTS[language]}")) - KEPT


@functools.lru_cache(maxsize=200_000)
def lemma(word: str, language: str, min_score: float = 0.5) -> str:
    """The dictionary form of a word: "кресла" is "кресло".

    For Russian and Ukrainian pymorphy3 gives every reading of a form with its probability. Those of
    one lemma are added up first: "кресла" is 0.5 genitive and 0.5 plural, and both are "кресло".

    Args:
        word: lower case.
        language: ISO 639-1.
        min_score: the word stays as it is where the likeliest lemma is less likely than this.
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
def _analyzer(language: str) -> MorphAnalyzer:
    import pymorphy3

    try:
        return pymorphy3.MorphAnalyzer(lang=language)
    except ValueError as error:
        raise UserError(
            f"there are no dictionaries for lemmas of {language!r}: pip install "
            f"pymorphy3-dicts-{language}, or leave it out of `languages`"
        ) from error
