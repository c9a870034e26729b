"""How queries are cleaned; light to import, for the command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from visual_search.query_rules import QueryRules
from visual_search.text_cleaning import CleaningRules


@dataclass(frozen=True)
class CleaningConfig:
    """The whole job; `config/image_text/cleaning.yml` has all keys.

    Attributes:
        languages: that may occur, ISO 639-1.
        words: what becomes of a query's words.
        drop: which queries say nothing.
        test_share: of all photos, by groups.
        workers: processes; 0 is one for each core.
    """

    languages: list[str] = field(default_factory=lambda: ["ru", "en"])
    words: CleaningRules = field(default_factory=CleaningRules)
    drop: QueryRules = field(default_factory=QueryRules)
    test_share: float = 0.02
    workers: int = 0
