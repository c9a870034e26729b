"""Queries as people type them, and what must be left of them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.image_text.text_normalization import (
    UNDETERMINED,
    CleaningRules,
    QueryRules,
    clean,
    language_of,
    lemma,
    stop_words,
    why_uninformative,
    words_of,
)
from tests.commands import refused

KEPT_AS_TYPED = CleaningRules(lemmas=False, stop_words=False)


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        ("Стол-книжка, БЕЛЫЙ!!!", "стол-книжка белый"),
        ("новогодняя ёлка", "новогодняя ёлка"),
        (unicodedata.normalize("NFD", "йогурт и ёлка"), "йогурт и ёлка"),
        ("сте\u0301на", "стена"),
        ("\ufeffко\u00adт\u200b", "кот"),
        ("ｉＰｈｏｎｅ １３", "iphone 13"),
        ("диван &amp; кресло <b>угловое</b>", "диван кресло угловое"),
        ("стул https://shop.ru/a?b=1 www.x.y me@mail.ru ozon.ru/product/7", "стул"),
        ("платье #лето2024 @shop 😀", "платье"),
        ("ковёр 140 х 200см", "ковёр 140x200 см"),
        ("ковёр 140см × 200 см", "ковёр 140x200 см"),
        ("ящик 3 х 4 X 5", "ящик 3x4x5"),
        ("вода 1,5л", "вода 1.5 л"),
        ("вода 1.5 л", "вода 1.5 л"),
        ("цены 1,200,500", "цены 1 200 500"),
        ("футболка 100% хлопок, р. 42/44", "футболка 100% хлопок р 42/44"),
        ("ботинки 5½", "ботинки 5 1/2"),
        ("телевизор 55″ 4K", 'телевизор 55" 4k'),
        ("кабель USB-C 3d wi-fi l'oreal", "кабель usb-c 3d wi-fi l'oreal"),
        # Latin p and o in a Russian word; Russian Х in a size.
        ("кpoвать", "кровать"),
        ("футболка ХL", "футболка xl"),
        ("стол №5", "стол 5"),
        ("!!! ... ---", ""),
        ("", ""),
    ],
)
def test_words_stay_and_marks_go(typed: str, left: str) -> None:
    assert clean(typed, "ru", KEPT_AS_TYPED) == left


@pytest.mark.parametrize(
    ("typed", "language", "left"),
    [
        ("кресла для детской", "ru", "кресло детский"),
        ("шкаф со стеклянными дверями", "ru", "шкаф стеклянный дверь"),
        # е typed for ё: the dictionary knows better.
        ("елка", "ru", "ёлка"),
        # What is left out changes what is seen.
        ("платье без рукавов", "ru", "платье без рукав"),
        ("a dress without the sleeves", "en", "dress without sleeve"),
        # Units are no verbs ("см" is also short for "смотри"), and brands are left alone.
        ("ковёр 200 см apple", "ru", "ковёр 200 см apple"),
        ("desk lamps", "und", "desk lamps"),
    ],
)
def test_lemmas_and_stop_words(typed: str, language: str, left: str) -> None:
    assert clean(typed, language) == left


@given(st.text(max_size=60))
def test_what_is_clean_stays_clean(typed: str) -> None:
    once = words_of(typed)
    assert words_of(" ".join(once)) == once
    for word in once:
        assert word == word.lower()
        assert not word.isspace()
        assert any(letter.isalnum() for letter in word)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "nothing is left after cleaning"),
        ("слово " * 31, "too many words"),
        ("12345 140x200", "numbers, sizes and units only"),
        ("а", "a single letter"),
        ("ааааааа", "one letter over and over"),
        ("хахахахаха", "one letter over and over"),
        ("фото купить", "only words of asking"),
        ("слово " * 30, None),
        ("4k", None),
        ("140x200 см", "numbers, sizes and units only"),
        ("1.5 л 10-12 100%", "numbers, sizes and units only"),
        ("ковёр 140x200 см", None),
        ("xl", None),
        ("фото стол", None),
        ("ааааа стол", None),
        ("колокол", None),
        ("длинношеее", None),
    ],
)
def test_rules(text: str, reason: str | None) -> None:
    assert why_uninformative(text.strip(), QueryRules()) == reason


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
    refused("ISO 639-1", language_of, "red dress", ("en", "bs", "tl", "sq", "nb", "sw"))


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
