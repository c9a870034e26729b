"""The most frequent runs of words in any number of texts, in memory that does not grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def ngrams(text: str, n: int, shorter: bool = False) -> list[str]:
    """All runs of n words.

    Args:
        text: words separated by single spaces.
        n: words of a run, at least 1.
        shorter: whether a text of fewer words is one itself, unless it is empty.
    """
    words = text.split()
    if shorter and 0 < len(words) < n:
        return [" ".join(words)]
    return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]


class TopNgrams:
    """Counts of n-grams, of which the rare are forgotten where there are too many.

    As of Misra and Gries (1982): where there are too many, the smallest count is taken off all of
    them. So a count is too small by :attr:`error` at the most, and never too large.
    """

    def __init__(self, n: int, capacity: int = 1_000_000, *, shorter: bool = False) -> None:
        """
        Args:
            n: words of a run.
            capacity: n-grams in memory; about 150 bytes each.
            shorter: whether a text of fewer words is one itself.
        """
        self.n, self.capacity, self.shorter = n, capacity, shorter
        self.error = 0
        self._counts: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        """Count the n-grams of some texts."""
        self._counts.update(gram for text in texts for gram in ngrams(text, self.n, self.shorter))
        while len(self._counts) > self.capacity:
            self._forget()

    def _forget(self) -> None:
        """Take the smallest count off all; those that had no more are gone."""
        least = min(self._counts.values())
        self.error += least
        self._counts = Counter(
            {gram: count - least for gram, count in self._counts.items() if count > least}
        )

    def most_common(self, k: int | None = None) -> list[tuple[str, int]]:
        """The k most frequent and their counts, most frequent first; equal ones by their text."""
        ordered = sorted(self._counts.items(), key=lambda found: (-found[1], found[0]))
        return ordered[:k]

    def __len__(self) -> int:
        """N-grams in memory."""
        return len(self._counts)
