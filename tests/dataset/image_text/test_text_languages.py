"""Which language, which stop words, which lemma."""

from __future__ import annotations

import pytest

from dataset.image_text.cleaning import UNDETERMINED, language_of, lemma, stop_words
from visual_search.errors import UserError


@pytest.mark.parametrize(
    ("text", "languages", "found"),
    [
        ("красное платье", ("ru", "en"), "ru"),
        ("чехол на iphone", ("ru", "en"), "ru"),
        ("red dress", ("ru", "en"), "en"),
        ("12 34", ("ru", "en"), UNDETERMINED),
        ("赤い靴", ("ru", "en"), UNDETERMINED),
        ("赤い靴", ("ru", "ja"), "ja"),
        ("red dress", ("ru",), UNDETERMINED),
        ("жіноча сукня", ("ru", "uk"), "uk"),
        ("чёрные сапоги", ("uk", "ru"), "ru"),
        ("schwarze Schuhe für Damen", ("en", "de", "ru"), "de"),
        ("black shoes for women", ("de", "en", "ru"), "en"),
    ],
)
def test_the_language_of_a_query(text: str, languages: tuple[str, ...], found: str) -> None:
    assert language_of(text, languages) == found


def test_an_unknown_language_is_named() -> None:
    # Azerbaijani is written in Latin letters, and the model does not know two of these.
    with pytest.raises(UserError, match="ISO 639-1"):
        language_of("red dress", ("en", "bs", "tl", "sq", "nb", "sw"))


def test_stop_words_name_nothing() -> None:
    assert {"для", "и", "с"} <= stop_words("ru")
    assert not {"без", "не", "стол", "белый", "большой", "машина", "окно"} & stop_words("ru")
    assert {"the", "for"} <= stop_words("en")
    assert not {"no", "not", "without", "case", "top", "fire"} & stop_words("en")
    assert stop_words("xx") == frozenset()


def test_readings_of_one_lemma_are_added_up() -> None:
    # Each reading of "кресла" alone has a probability of 0.5 or less.
    assert lemma("кресла", "ru", 0.9) == "кресло"
    # "красное" may be the adjective or the noun (wine): neither is likelier.
    assert lemma("красное", "ru", 0.6) == "красное"
    assert lemma("красное", "ru", 0.5) == "красный"
    assert lemma("iphone", "ru") == "iphone"
    assert lemma("lamps", "en") == "lamp"
    assert lemma("lamps", "xx") == "lamps"
