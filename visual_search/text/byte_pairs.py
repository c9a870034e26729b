"""Byte-pair encoding by a model file of YouTokenToMe, the tokenizer of ru-CLIP.

The package itself has no release since 2020. A model file holds numbers alone: how many
characters and rules there are; a line `code point, token` for each character; a line
`first, second, merged` for each rule, the strongest first; and the tokens of unknown, padding,
begin and end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.common.files import regular_text

WORD_MARK = "\u2581"
"""Stands in front of each word."""


class BytePairs:
    """Texts to token numbers."""

    def __init__(self, path: Path) -> None:
        """Read a model file.

        Raises:
            UserError: when it is none.
        """
        try:
            numbers = [int(word) for word in regular_text(path, "ascii").split()]
            characters, rules = numbers[0], numbers[1]
            first = 2 + 2 * characters
            last = first + 3 * rules
            self.token_of = {chr(c): t for c, t in zip(*[iter(numbers[2:first])] * 2, strict=True)}
            merges = zip(*[iter(numbers[first:last])] * 3, strict=True)
            self.rules = {(a, b): (rank, c) for rank, (a, b, c) in enumerate(merges)}
            self.unknown, self.padding, self.begin, self.end = numbers[last:]
            self.mark = self.token_of[WORD_MARK]
        except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise UserError(f"{path} is no model file of YouTokenToMe: {error!r}") from error
        self._tokens = lru_cache(maxsize=100_000)(self._word)

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """`(n, context_length)`, int64: begin, the tokens of the small letters, end, padding."""
        rows = torch.full((len(texts), context_length), self.padding)
        for row, text in zip(rows, texts, strict=True):
            words = re.findall(rf"[^ \t\n\v\f\r{WORD_MARK}]+", text.lower())
            tokens = [token for word in words for token in self._tokens(word)]
            known = [self.begin, *tokens[: context_length - 2], self.end]
            row[: len(known)] = torch.tensor(known)
        return rows

    def _word(self, word: str) -> tuple[int, ...]:
        """The tokens of a word: of the pairs that stand there, the strongest is merged first."""
        tokens = [self.mark]
        for character in word:
            token = self.token_of.get(character, -1)
            # Characters that were never seen are one unknown, however many there are.
            if token != -1 or tokens[-1] != -1:
                tokens.append(token)
        while True:
            places = enumerate(pairwise(tokens))
            known = [(*self.rules[pair], at) for at, pair in places if pair in self.rules]
            if not known:
                return tuple(self.unknown if token == -1 else token for token in tokens)
            _, merged, at = min(known)
            tokens[at : at + 2] = [merged]
