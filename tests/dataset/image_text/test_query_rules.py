"""Each rule that drops a query, and queries that none of them may touch."""

from __future__ import annotations

import pytest

from dataset.image_text.cleaning import (
    ASKING,
    EMPTY,
    LONG,
    MASHED,
    NUMBERS,
    REPEATED,
    SHORT,
    QueryRules,
    informative,
    why_uninformative,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", EMPTY),
        ("слово " * 31, LONG),
        ("12345 140x200", NUMBERS),
        ("а", SHORT),
        ("ааааааа", MASHED),
        ("хахахахаха", MASHED),
        ("фото купить", ASKING),
        ("слово " * 30, None),
        ("4k", None),
        ("140x200 см", NUMBERS),
        ("1.5 л 10-12 100%", NUMBERS),
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


def test_other_words_of_asking() -> None:
    assert why_uninformative("обои", QueryRules(asking_words="обои")) == ASKING
    assert why_uninformative("фото", QueryRules(asking_words="обои")) is None


def test_a_query_counts_once_for_a_photo() -> None:
    found = informative(["стол", "стул", "стол", "", ""], QueryRules())
    assert found == [(0, None), (1, None), (2, REPEATED), (3, EMPTY), (4, EMPTY)]
