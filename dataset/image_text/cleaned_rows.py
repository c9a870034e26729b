"""Cleaning a block of photos' queries, by one worker."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from visual_search.query_rules import QueryRules, informative
from visual_search.text_cleaning import CleaningRules, clean_words, words_of
from visual_search.text_languages import language_of

EXAMPLES = 5
"""Dropped queries that are shown for each reason."""

Photo = tuple[str, str, list[str]]
"""Image id, file, queries as typed."""


@dataclass
class Cleaned:
    """Photos with the queries that are left, and what became of the others.

    Attributes:
        images: ids.
        files: of the photos.
        queries: as typed.
        texts: cleaned, one for each query.
        languages: of each query.
        dropped: queries by the reason why they were dropped.
        examples: some of them.
        read: queries in all.
    """

    images: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    queries: list[list[str]] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    languages: list[list[str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    read: int = 0

    def drop(self, reason: str, query: str) -> None:
        """Count a query that is dropped."""
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES and query not in shown:
            shown.append(query)

    def add_counts(self, other: Cleaned) -> None:
        """Count what another one dropped, too."""
        self.read += other.read
        self.dropped.update(other.dropped)
        for reason, queries in other.examples.items():
            shown = self.examples.setdefault(reason, [])
            shown += [query for query in queries if query not in shown][: EXAMPLES - len(shown)]


def clean_photos(
    photos: Sequence[Photo], languages: tuple[str, ...], rules: CleaningRules, drop: QueryRules
) -> Cleaned:
    """Clean all queries of some photos; a photo without a query that says something is left out."""
    found = Cleaned()
    for image, file, queries in photos:
        found.read += len(queries)
        said = [words_of(query) for query in queries]
        spoken = [language_of(" ".join(words), languages) for words in said]
        texts = [
            clean_words(words, language, rules)
            for words, language in zip(said, spoken, strict=True)
        ]
        kept = []
        for number, reason in informative(texts, drop):
            if reason is None:
                kept.append(number)
            else:
                found.drop(reason, queries[number])
        if kept:
            found.images.append(image)
            found.files.append(file)
            found.queries.append([queries[number] for number in kept])
            found.texts.append([texts[number] for number in kept])
            found.languages.append([spoken[number] for number in kept])
    return found


def single_thread() -> None:
    """For a worker beside others: linear algebra on one core."""
    os.environ["OMP_NUM_THREADS"] = "1"
