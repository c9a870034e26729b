"""Text towers by name: texts to token numbers, token numbers to features.

| name | what it is | trained |
|---|---|---|
| `hashed` | words and character n-grams, from scratch | its table |
| `use`, `sentence-transformers/NAME` | frozen sentence encoders | nothing |
| `open_clip/ARCHITECTURE[/TAG]` | the text side of an open_clip model | blocks, embeddings |
| `hf/NAME` | any encoder or decoder of transformers, from a hub or a folder | blocks, embeddings |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.errors import UserError
from visual_search.hashed_ngrams import HashedNgrams
from visual_search.pooled_text import HuggingFaceText, OpenClipText

MOST_REMEMBERED = 100_000
"""Texts whose frozen embeddings are kept in memory; 512 numbers each are 200 MB."""


class FrozenText(nn.Module):
    """A sentence encoder that is not trained; its vectors are the tokens."""

    mean: Tensor
    scale: Tensor

    def __init__(self, name: str, noise: float = 0.0, dropout: float = 0.0) -> None:
        """
        Args:
            name: as :func:`visual_search.sentence_encoders.sentence_encoder` takes it.
            noise: standard deviation of what is added in training, the features' own being 1.
            dropout: share of the features dropped in training, 0..1.
        """
        super().__init__()
        from visual_search.sentence_encoders import sentence_encoder

        self.encoder = sentence_encoder(name)
        self.dimension, self.noise = self.encoder.dimension, noise
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(self.dimension))
        self.register_buffer("scale", torch.ones(()))
        self._known: dict[str, Tensor] = {}

    def fit(self, texts: Sequence[str]) -> None:
        """Centre the features, and bring their standard deviation over all texts to 1."""
        vectors = self.tokenize(sorted(set(texts)))
        self.mean.copy_(vectors.mean(dim=0))
        self.scale.copy_((vectors - self.mean).std().clamp(min=1e-6))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, dimension)`, float32; those of known texts come from memory."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        made = (
            dict(zip(new, torch.from_numpy(self.encoder.encode(new)), strict=True)) if new else {}
        )
        vectors = torch.stack([made[t] if t in made else self._known[t] for t in texts])
        if len(self._known) + len(made) > MOST_REMEMBERED:
            self._known.clear()
        self._known |= made
        return vectors

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardised features, `(n, dimension)`."""
        features = (tokens - self.mean) / self.scale
        if self.training and self.noise:
            features = features + self.noise * torch.randn_like(features)
        return self.dropout(features)


class TextTowers(nn.Module):
    """One or several towers; their features stand side by side."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(parts)
        self.parts = nn.ModuleList(parts.values())
        self.widths: tuple[int, ...] = tuple(int(part.dimension) for part in self._each())
        self.dimension = sum(self.widths)

    def _each(self) -> list[Any]:
        return list(self.parts)

    def part(self, name: str) -> Any:
        """The tower of that name."""
        return self.parts[self.names.index(name)]

    def columns(self, name: str) -> Tensor:
        """Where that tower's features stand among all, `(its dimension,)`, int64."""
        place = self.names.index(name)
        start = sum(self.widths[:place])
        return torch.arange(start, start + self.widths[place])

    def fit(self, texts: Sequence[str]) -> None:
        """Let the towers that need it look at the training texts once."""
        texts = in_small_letters(texts)
        for part in self._each():
            if hasattr(part, "fit"):
                part.fit(texts)

    def tokenize(self, texts: Sequence[str]) -> list[Tensor]:
        """What :meth:`forward` takes, a tensor of `n` rows for each tower."""
        texts = in_small_letters(texts)
        return [part.tokenize(texts) for part in self._each()]

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """`(n, dimension)`."""
        return torch.cat([part(rows) for part, rows in zip(self.parts, tokens, strict=True)], dim=1)

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the last `blocks` blocks (-1 all, 0 none), and the embeddings or not.

        Raises:
            UserError: when a tower has not that many blocks.
        """
        for part in self._each():
            if isinstance(part, HashedNgrams):
                part.requires_grad_(embeddings)
            elif not isinstance(part, FrozenText):
                part.train_last(blocks, embeddings)

    def save_files(self, folder: Path) -> None:
        """Write what a tower needs beside its weights, such as a tokenizer."""
        for number, part in enumerate(self._each()):
            if hasattr(part, "save_files"):
                part.save_files(folder / f"tower-{number}")


def in_small_letters(texts: Sequence[str]) -> list[str]:
    """As typed queries mostly are: names of products would else train what is never asked."""
    return [text.strip().lower() for text in texts]


def create_text_towers(
    names: Sequence[str],
    weights: str = "none",
    *,
    tokens: int = 77,
    pooling: str = "mean",
    buckets: int = 20000,
    dimension: int = 256,
    noise: float = 0.0,
    dropout: float = 0.0,
    files: Path | None = None,
) -> TextTowers:
    """Build text towers.

    Args:
        names: see the table at the top of this module.
        weights: of open_clip and hf towers: `hub`, `none`, or a state-dict file.
        tokens: the longest text, in tokens.
        pooling: of hf towers: mean, first or last.
        buckets: of hashed.
        dimension: of hashed.
        noise: of frozen encoders in training.
        dropout: the same.
        files: a folder that :meth:`TextTowers.save_files` wrote: nothing is fetched then.

    Raises:
        UserError: for an unknown name, or a tower that cannot be had.
    """
    if not names:
        raise UserError(f"text.towers is empty; name one or several of {', '.join(TOWERS)}")
    made: dict[str, nn.Module] = {}
    for number, name in enumerate(names):
        kind = name.partition("/")[0]
        if kind not in TOWERS:
            raise UserError(f"text.towers: {name!r} is unknown; it can be {', '.join(TOWERS)}")
        if name in made:
            raise UserError(f"text.towers names {name!r} twice")
        saved = files / f"tower-{number}" if files else None
        made[name] = TOWERS[kind](
            name,
            {
                "weights": weights,
                "tokens": tokens,
                "pooling": pooling,
                "buckets": buckets,
                "dimension": dimension,
                "noise": noise,
                "dropout": dropout,
                "files": saved if saved and saved.is_dir() else None,
            },
        )
    for part in made.values():
        if isinstance(part, HashedNgrams) and len(made) == 1:
            part.start_alone()
    return TextTowers(made)


def _frozen(name: str, settings: Mapping[str, Any]) -> nn.Module:
    return FrozenText(name, settings["noise"], settings["dropout"])


def _hashed(name: str, settings: Mapping[str, Any]) -> nn.Module:
    return HashedNgrams(settings["buckets"], settings["dimension"])


def _open_clip(name: str, settings: Mapping[str, Any]) -> nn.Module:
    return OpenClipText(name.partition("/")[2], settings["weights"], settings["tokens"])


def _hf(name: str, settings: Mapping[str, Any]) -> nn.Module:
    return HuggingFaceText(
        name.partition("/")[2],
        settings["weights"],
        settings["tokens"],
        settings["pooling"],
        settings["files"],
    )


TOWERS: dict[str, Callable[[str, Mapping[str, Any]], nn.Module]] = {
    "hashed": _hashed,
    "use": _frozen,
    "sentence-transformers": _frozen,
    "open_clip": _open_clip,
    "hf": _hf,
}
"""Builders by the first part of a name."""
