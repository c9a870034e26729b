"""Text towers by name: texts to token numbers, token numbers to features.

| name | what it is | trained |
|---|---|---|
| `hashed` | words and character n-grams, from scratch | its table |
| `use`, `sentence-transformers/NAME` | frozen sentence encoders | nothing |
| `open_clip/ARCHITECTURE[/TAG]` | the text side of an open_clip model | blocks, embeddings |
| `hf/NAME` | any encoder or decoder of transformers, from a hub or a folder | blocks, embeddings |
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visual_search.common.errors import UserError
from visual_search.model.weights import go_offline_without_network, load_file_weights
from visual_search.text.config import TextConfig
from visual_search.text.sentence_encoders import sentence_encoder

MOST_REMEMBERED = 100_000
"""Texts whose frozen embeddings are kept in memory; 512 numbers each are 200 MB."""
PADDING = -1
"""Stands behind the tokens of a text that is shorter than others."""
SHORTEST, LONGEST = 3, 5
"""Characters of an n-gram, the marks at both ends of a word included."""


class Standardised(nn.Module):
    """Features less their mean, with a standard deviation of 1 over all; noise in training."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dimension: int, noise: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(()))
        self.noise, self.dropout = noise, nn.Dropout(dropout)

    def measure(self, features: Tensor) -> None:
        """Take mean and scale from `(n, dimension)`."""
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_((features - self.mean).std().clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """`(n, dimension)`."""
        features = (features - self.mean) / self.scale
        if self.training and self.noise:
            features = features + self.noise * torch.randn_like(features)
        return self.dropout(features)


class TextTower(nn.Module, ABC):
    """One tower; what it does not need it leaves as it is here."""

    dimension: int
    """Width of the features."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """What :meth:`forward` takes, a row for each text."""

    def fit(self, texts: Sequence[str]) -> None:
        """Look at the training texts once."""

    def start_alone(self) -> None:
        """Start without another tower beside it."""

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the last `blocks` blocks (-1 all, 0 none), and the embeddings or not."""

    def save_files(self, folder: Path) -> None:
        """Write what it needs beside its weights, such as a tokenizer."""


class FrozenText(Standardised, TextTower):
    """A sentence encoder that is not trained; its vectors are the tokens."""

    def __init__(self, name: str, noise: float = 0.0, dropout: float = 0.0) -> None:
        """`name` is as :func:`visual_search.text.sentence_encoders.sentence_encoder` takes it."""
        encoder = sentence_encoder(name)
        super().__init__(encoder.dimension, noise, dropout)
        self.encoder, self.dimension = encoder, encoder.dimension
        self._known: dict[str, Tensor] = {}

    def fit(self, texts: Sequence[str]) -> None:
        """Centre the features, and bring their standard deviation over all texts to 1."""
        self.measure(self.tokenize(sorted(set(texts))))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, dimension)`, float32; those of known texts come from memory."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        made = dict(zip(new, torch.from_numpy(self.encoder.encode(new)), strict=True))
        vectors = torch.stack([made[t] if t in made else self._known[t] for t in texts])
        if len(self._known) + len(made) > MOST_REMEMBERED:
            self._known.clear()
        self._known |= made
        return vectors


def features_of(text: str) -> list[str]:
    """The words of a text, and the n-grams of each between its marks `<` and `>`."""
    features: list[str] = []
    plain = unicodedata.normalize("NFKC", text).lower().replace("ё", "е")
    for word in re.findall(r"\w+", plain):
        features.append(f"={word}")
        marked = f"<{word}>"
        for length in range(SHORTEST, LONGEST + 1):
            features += [marked[i : i + length] for i in range(len(marked) - length + 1)]
    return features


@lru_cache(maxsize=100_000)
def hashed(text: str, buckets: int) -> tuple[int, ...]:
    """Each feature's number, 1..buckets; the same in every process and year (CRC-32)."""
    return tuple(1 + zlib.crc32(feature.encode()) % buckets for feature in features_of(text))


class HashedNgrams(TextTower):
    """The mean of the features' trained vectors, weighted by how rare each is (tf-idf).

    As fastText (Bojanowski et al. 2017): a word is known by itself and by its n-grams, so that
    other forms of it, and misspelt ones, are near. Features that no training text has count as
    nothing. scikit-learn's HashingVectorizer has other numbers than the tables trained already.
    """

    idf: Tensor

    def __init__(self, buckets: int = 20000, dimension: int = 256) -> None:
        super().__init__()
        self.buckets, self.dimension = buckets, dimension
        self.table = nn.Embedding(buckets + 1, dimension, padding_idx=0)
        # Beside another tower it starts as if it were not there.
        nn.init.zeros_(self.table.weight)
        self.register_buffer("idf", torch.zeros(buckets + 1))

    def start_alone(self) -> None:
        """Random vectors, for a tower without another beside it: from nothing nothing is learnt."""
        self.table.reset_parameters()

    def fit(self, texts: Sequence[str]) -> None:
        """Weigh the features by the training texts: ln((1 + n) / (1 + df)) + 1."""
        counts = np.zeros(self.buckets + 1)
        distinct = set(texts)
        for text in distinct:
            counts[list(set(hashed(text, self.buckets)))] += 1
        idf = np.where(counts > 0, np.log((1 + len(distinct)) / (1 + counts)) + 1, 0.0)
        self.idf.copy_(torch.from_numpy(idf))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """`(n, longest)`, int64, filled up with 0."""
        rows = [hashed(text, self.buckets) or (0,) for text in texts]
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(n, dimension)`; zeros for a text of unknown features alone."""
        weights = self.idf[tokens]
        weights = weights / weights.norm(dim=1, keepdim=True).clamp(min=1e-12)
        # Without a tensor of all features' vectors: a description has a thousand.
        return F.embedding_bag(
            tokens, self.table.weight, mode="sum", per_sample_weights=weights.to(self.table.weight)
        )

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the table, or not; it has no blocks."""
        self.requires_grad_(embeddings)


class OpenClipText(TextTower):
    """The text side of an open_clip model, its projection included."""

    def __init__(self, name: str, weights: str = "none", tokens: int = 77) -> None:
        """`<architecture>[/<tag>]`; weights are `hub`, `none`, or a state-dict file.

        Raises:
            UserError: for an unknown architecture, or weights that cannot be had.
        """
        super().__init__()
        import open_clip

        architecture, _, tag = name.partition("/")
        if architecture not in open_clip.list_models():
            some = ", ".join(open_clip.list_models()[:12])
            raise UserError(
                f"text.towers: open_clip has no architecture {architecture!r}; it has {some}, …"
            )

        def build() -> Any:
            return open_clip.create_model(
                architecture,
                pretrained=tag or None if weights == "hub" else None,
                pretrained_hf=False,
                force_custom_text=True,
            )

        if weights == "hub":
            go_offline_without_network()
        model = fetched(f"open_clip/{name}", build) if weights == "hub" else build()
        self.text: Any = model.text
        self.text.output_tokens = False
        if weights not in ("hub", "none"):
            load_file_weights(self.text, weights, f"open_clip/{architecture}", prefix="text.")
        self.tokens = min(tokens, int(self.text.context_length))
        self.tokenizer: Any = open_clip.get_tokenizer(architecture)
        with torch.no_grad():
            self.dimension = int(self(self.tokenize(["a"])).shape[1])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """`(n, context length)`, int64; longer texts are cut to :attr:`tokens`."""
        numbers: Tensor = self.tokenizer(list(texts), context_length=self.tokens)
        room = int(self.text.context_length) - self.tokens
        return nn.functional.pad(numbers, (0, room), value=int(getattr(self.text, "pad_id", 0)))

    def forward(self, tokens: Tensor) -> Tensor:
        """`(n, dimension)`."""
        return cast(Tensor, self.text(tokens))

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """See :func:`train_last`."""
        names = ("token_embedding", "positional_embedding", "cls_emb", "embeddings")
        train_last(self.text, blocks, embeddings, names)


class HuggingFaceText(TextTower):
    """An encoder (ruBERT) or a decoder (GPT-2) of the library transformers, its tokens pooled."""

    def __init__(
        self,
        name: str,
        weights: str = "none",
        tokens: int = 77,
        pooling: str = "mean",
        files: Path | None = None,
    ) -> None:
        """`name` is of a hub, or a folder with config and tokenizer; `files`, too, before it.

        Raises:
            UserError: when the model cannot be had.
            ModuleNotFoundError: without the package transformers.
        """
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        place = str(files or name)
        if not Path(place).is_dir():
            go_offline_without_network()
        shown = f"hf/{name}"
        self.tokenizer: Any = fetched(shown, lambda: AutoTokenizer.from_pretrained(place))
        if weights == "hub" and files is None:
            model = fetched(shown, lambda: AutoModel.from_pretrained(place))
        else:
            config = fetched(shown, lambda: AutoConfig.from_pretrained(place))
            model = AutoModel.from_config(config)
            if weights not in ("hub", "none") and files is None:
                load_file_weights(model, weights, shown)
        self.model: Any = model
        if self.tokenizer.pad_token is None:  # GPT-2 has none; padding is masked either way
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # The text's end is cut and filled up, also where a model was trained with the other.
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        self.tokens, self.pooling = tokens, pooling
        self.dimension = int(model.config.hidden_size)
        # Never used here: processes that train together would wait for its gradient.
        if getattr(model, "pooler", None) is not None:
            model.pooler = None

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """`(n, longest)`, int64, filled up with :data:`PADDING`."""
        made = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        numbers: Tensor = made["input_ids"]
        # A text without a token has one of padding, lest the pooling divide by nothing.
        mask = made["attention_mask"].bool()
        mask[:, 0] = True
        return numbers.masked_fill(~mask, PADDING)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(n, dimension)`: the pooled tokens of the last layer."""
        mask = tokens != PADDING
        hidden = self.model(
            input_ids=tokens.clamp(min=0), attention_mask=mask.long()
        ).last_hidden_state
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """See :func:`train_last`."""
        train_last(self.model, blocks, embeddings, ("embeddings", "wte", "wpe", "embed_tokens"))

    def save_files(self, folder: Path) -> None:
        """Write config and tokenizer, from which the tower can be built without a hub."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def fetched(name: str, build: Callable[[], Any]) -> Any:
    """What `build` gives, from a hub or a folder; what keeps it away is said in one sentence."""
    try:
        return build()
    except (OSError, RuntimeError, ValueError, ImportError, KeyError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"the text tower {name} could not be had ({cause}): name a folder that has it, or "
            "set text.towers to hashed or use, which need no hub"
        ) from error


def train_last(
    network: nn.Module, blocks: int, embeddings: bool, embedding_names: Sequence[str]
) -> None:
    """Train the last `blocks` blocks of a transformer and what comes behind them, in place.

    -1 trains all blocks, 0 none; `embeddings` says whether those of tokens and positions, known
    by the parts of their parameters' names, are trained too.

    Raises:
        UserError: when there are not that many blocks.
    """
    lists = {n: m for n, m in network.named_modules() if isinstance(m, nn.ModuleList)}
    prefix, stack = max(lists.items(), key=lambda entry: len(entry[1]), default=("", ()))
    count = len(stack)
    if blocks > count:
        raise UserError(
            f"text.trainable_blocks is {blocks}; this tower has {count} blocks: write 0..{count}, "
            "or -1 to train them all"
        )
    first = 0 if blocks == -1 else count - blocks
    for name, parameter in network.named_parameters():
        if any(part in name.split(".") for part in embedding_names):
            trains = embeddings
        elif name.startswith(f"{prefix}."):
            trains = int(name.removeprefix(f"{prefix}.").partition(".")[0]) >= first
        else:
            trains = blocks != 0
        parameter.requires_grad_(trains)


class TextTowers(nn.Module):
    """One or several towers; their features stand side by side."""

    def __init__(self, parts: Mapping[str, TextTower]) -> None:
        super().__init__()
        self.names, self.towers = tuple(parts), list(parts.values())
        self.parts = nn.ModuleList(self.towers)
        self.dimension = sum(tower.dimension for tower in self.towers)

    def part(self, name: str) -> Any:
        """The tower of that name."""
        return self.towers[self.names.index(name)]

    def columns(self, name: str) -> Tensor:
        """Where that tower's features stand among all, `(its dimension,)`, int64."""
        place = self.names.index(name)
        start = sum(tower.dimension for tower in self.towers[:place])
        return torch.arange(start, start + self.towers[place].dimension)

    def fit(self, texts: Sequence[str]) -> None:
        """Let each tower look at the training texts once."""
        for tower in self.towers:
            tower.fit(in_small_letters(texts))

    def tokenize(self, texts: Sequence[str]) -> list[Tensor]:
        """What :meth:`forward` takes, a tensor of `n` rows for each tower."""
        return [tower.tokenize(in_small_letters(texts)) for tower in self.towers]

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """`(n, dimension)`."""
        return torch.cat([part(rows) for part, rows in zip(self.parts, tokens, strict=True)], dim=1)

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the last `blocks` blocks (-1 all, 0 none), and the embeddings or not."""
        for tower in self.towers:
            tower.train_last(blocks, embeddings)

    def save_files(self, folder: Path) -> None:
        """Write what the towers need beside their weights."""
        for number, tower in enumerate(self.towers):
            tower.save_files(folder / f"tower-{number}")


def in_small_letters(texts: Sequence[str]) -> list[str]:
    """As queries are mostly typed: names of products would else train what is never asked."""
    return [text.strip().lower() for text in texts]


def create_text_towers(text: TextConfig, files: Path | None = None) -> TextTowers:
    """Build text towers.

    Args:
        text: their names, and how they are made.
        files: a folder that :meth:`TextTowers.save_files` wrote: nothing is fetched then.

    Raises:
        UserError: for an unknown name, or a tower that cannot be had.
    """
    if not text.towers:
        raise UserError(f"text.towers is empty; name one or several of {', '.join(TOWERS)}")
    made: dict[str, TextTower] = {}
    for number, name in enumerate(text.towers):
        kind = name.partition("/")[0]
        if kind not in TOWERS:
            raise UserError(f"text.towers: {name!r} is unknown; it can be {', '.join(TOWERS)}")
        if name in made:
            raise UserError(f"text.towers names {name!r} twice")
        saved = files / f"tower-{number}" if files else None
        made[name] = TOWERS[kind](name, text, saved if saved and saved.is_dir() else None)
    if len(made) == 1:
        made[text.towers[0]].start_alone()
    return TextTowers(made)


TOWERS: dict[str, Callable[[str, TextConfig, Path | None], TextTower]] = {
    "hashed": lambda _, text, __: HashedNgrams(text.buckets, text.dimension),
    "use": lambda name, text, _: FrozenText(name, text.noise, text.dropout),
    "sentence-transformers": lambda name, text, _: FrozenText(name, text.noise, text.dropout),
    "open_clip": lambda name, text, _: OpenClipText(
        name.partition("/")[2], text.weights, text.tokens
    ),
    "hf": lambda name, text, files: HuggingFaceText(
        name.partition("/")[2], text.weights, text.tokens, text.pooling, files
    ),
}
"""Builders by the first part of a name."""
