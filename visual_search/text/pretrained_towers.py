"""Text towers that others have trained: open_clip's, a CLIP in a folder, and Hugging Face's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visual_search.common.errors import UserError
from visual_search.common.files import regular_text, write_bytes
from visual_search.model.clip_folder import BPE_FILE, create_clip_text
from visual_search.model.weights import go_offline_without_network, load_file_weights
from visual_search.text.towers import TextTower

TOKENIZER_FILES = (BPE_FILE, "*.json", "merges.txt")
"""Of a CLIP's folder, what its text tower is built from beside the weights."""
EMBEDDINGS = {"token_embedding", "positional_embedding", "cls_emb", "embeddings"} | {
    *("wte", "wpe", "embed_tokens")
}
"""Parts of the names of what embeds tokens and positions, in any of the libraries."""
WORD_MARK = "\u2581"
"""Stands in front of each word."""
UNKNOWN = "<unknown>"
"""Characters that were never seen; however many there are, they are one token."""


class PretrainedText(TextTower):
    """A transformer, trained from some of its blocks on."""

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the last `blocks` blocks (-1 all, 0 none), what is behind them, and embeddings.

        Raises:
            UserError: when there are not that many blocks.
        """
        lists = {n: m for n, m in self.named_modules() if isinstance(m, nn.ModuleList)}
        prefix, stack = max(lists.items(), key=lambda entry: len(entry[1]), default=("", ()))
        count = len(stack)
        if blocks > count:
            raise UserError(
                f"text.trainable_blocks is {blocks}; this tower has {count} blocks: write "
                f"0..{count}, or -1 to train them all"
            )
        first = 0 if blocks == -1 else count - blocks
        for name, parameter in self.named_parameters():
            if EMBEDDINGS.intersection(name.split(".")):
                trains = embeddings
            elif name.startswith(f"{prefix}."):
                trains = int(name.removeprefix(f"{prefix}.").partition(".")[0]) >= first
            else:
                trains = blocks != 0
            parameter.requires_grad_(trains)


class OpenClipText(PretrainedText):
    """The text tower of a CLIP in open_clip's form, its projection included."""

    def __init__(
        self,
        text: Any,
        tokenizer: Callable[..., Tensor],
        tokens: int,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            text: the network.
            tokenizer: `(texts, context_length)` to `(n, context_length)`, int64.
            tokens: the longest text; what is longer is cut.
            files: by name, what both are built from again, beside the weights.
        """
        super().__init__()
        self.text, self.tokenizer, self.files = text, tokenizer, files
        self.text.output_tokens = False
        self.vocabulary, self.padding = int(text.vocab_size), int(getattr(text, "pad_id", 0))
        self.tokens = min(tokens, int(text.context_length))
        with torch.no_grad():
            self.dimension = int(self(self.tokenize(["a"])).shape[1])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """`(n, context length)`, int64; longer texts are cut to :attr:`tokens`."""
        numbers: Tensor = self.tokenizer(list(texts), context_length=self.tokens)
        room = int(self.text.context_length) - self.tokens
        return nn.functional.pad(numbers, (0, room), value=self.padding)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(n, dimension)`."""
        return cast(Tensor, self.text(tokens))

    def save_files(self, folder: Path) -> None:
        """Write the configuration and the tokenizer, where the tower came from a folder."""
        for name, content in self.files.items():
            write_bytes(folder / name, content)


def open_clip_text(name: str, weights: str = "none", tokens: int = 77) -> OpenClipText:
    """The text side of the open_clip model `<architecture>[/<tag>]`.

    `weights` are `hub`, `none`, or a state-dict file.

    Raises:
        UserError: for an unknown architecture, or weights that cannot be had.
    """
    import open_clip

    architecture, _, tag = name.partition("/")
    if weights == "hub":
        go_offline_without_network()
    text = fetched(
        f"open_clip/{name}",
        lambda: open_clip.create_model(
            architecture,
            pretrained=tag or None if weights == "hub" else None,
            pretrained_hf=False,
            force_custom_text=True,
        ),
    ).text
    if weights not in ("hub", "none"):
        load_file_weights(text, weights, f"open_clip/{architecture}", prefix="text.")
    return OpenClipText(text, open_clip.get_tokenizer(architecture), tokens)


def clip_folder_text(folder: Path, weights: str = "none", tokens: int = 77) -> OpenClipText:
    """The text side of a CLIP in a folder (:mod:`visual_search.model.clip_folder`).

    `weights` are `hub` for the folder's own, or `none`.

    Raises:
        UserError: when the folder holds no CLIP, or no tokenizer.
    """
    if weights not in ("hub", "none"):
        raise UserError(f"text.weights is {weights!r}; of clip/{folder} they are hub or none")
    text = create_clip_text(folder, weights=weights == "hub")
    if (folder / BPE_FILE).is_file():
        tokenizer: Any = byte_pairs(folder / BPE_FILE)
    else:
        import transformers  # noqa: F401 - where it is missing, the command says what to install
        from open_clip.tokenizer import HFTokenizer

        tokenizer = fetched(f"clip/{folder}", lambda: HFTokenizer(str(folder)))
    # Read now: when the tower is saved, the folder may be gone.
    paths = [path for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern))]
    return OpenClipText(text, tokenizer, tokens, {path.name: path.read_bytes() for path in paths})


def byte_pairs(path: Path) -> Callable[..., Tensor]:
    """The tokenizer of a model file of YouTokenToMe, as ru-CLIP has.

    It makes `(n, context_length)`, int64, of `(texts, context_length)`: begin, the tokens of the
    small letters, end, padding. That package has no release since 2020; the library tokenizers
    merges by the same rules. A file holds numbers alone: how many characters and rules there are;
    `code point, token` of each character; `first, second, merged` of each rule, the strongest
    first; and the tokens of unknown, padding, begin and end.

    Raises:
        UserError: when the file is none.
    """
    from tokenizers import Tokenizer, models, processors

    try:
        numbers = [int(word) for word in regular_text(path, "ascii").split()]
        first = 2 + 2 * numbers[0]
        last = first + 3 * numbers[1]
        unknown, padding, begin, end = numbers[last:]
        text = {t: chr(c) for c, t in zip(*[iter(numbers[2:first])] * 2, strict=True)}
        merges = []
        for one, other, merged in zip(*[iter(numbers[first:last])] * 3, strict=True):
            merges.append((text[one], text[other]))
            text[merged] = text[one] + text[other]
        vocabulary = {part: token for token, part in text.items()} | {UNKNOWN: unknown}
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True))
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is no model file of YouTokenToMe: {error!r}") from error
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BEGIN] $A [END]", special_tokens=[("[BEGIN]", begin), ("[END]", end)]
    )

    def tokenize(texts: Sequence[str], context_length: int) -> Tensor:
        tokenizer.enable_truncation(context_length)
        tokenizer.enable_padding(length=context_length, pad_id=padding)
        words = [re.findall(rf"[^ \t\n\v\f\r{WORD_MARK}]+", text.lower()) for text in texts]
        marked = [[WORD_MARK + word for word in row] for row in words]
        return torch.tensor(
            [row.ids for row in tokenizer.encode_batch(marked, is_pretokenized=True)]
        )

    return tokenize


class HuggingFaceText(PretrainedText):
    """An encoder (ruBERT) or a decoder (GPT-2) of the library transformers, its tokens pooled."""

    padding = -1

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
        self.ends = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        if pooling == "end" and None in self.ends:
            raise UserError(
                f"text.pooling is end, and the tokenizer of {shown} names no tokens of begin and "
                "end: set it to last, or to first for a BERT"
            )
        self.dimension = int(model.config.hidden_size)
        self.vocabulary = int(model.config.vocab_size)
        # Never used here: processes that train together would wait for its gradient.
        if getattr(model, "pooler", None) is not None:
            model.pooler = None

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """`(n, longest)`, int64, filled up with -1."""
        # Between marks of our own, none that a tokenizer of another kind would add.
        marked = self.pooling == "end"
        rows: list[list[int]] = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.tokens - 2 * marked,
            add_special_tokens=not marked,
        )["input_ids"]
        if marked:
            rows = [[self.ends[0], *row, self.ends[1]] for row in rows]
        # A text without a token has one of padding, lest the pooling divide by nothing.
        numbers = [torch.tensor(row or [self.tokenizer.pad_token_id]) for row in rows]
        return pad_sequence(numbers, batch_first=True, padding_value=self.padding)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(n, dimension)`: the pooled tokens of the last layer."""
        mask = tokens != self.padding
        hidden = self.model(
            input_ids=tokens.clamp(min=0), attention_mask=mask.long()
        ).last_hidden_state
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling in ("last", "end"):
            return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

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
