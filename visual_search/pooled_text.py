"""Transformers that read text: open_clip's text towers and those of the library transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.errors import UserError
from visual_search.weights_files import go_offline_without_network, load_file_weights

PADDING = -1
"""Stands behind the tokens of a text that is shorter than others."""


class OpenClipText(nn.Module):
    """The text side of an open_clip model, its projection included."""

    def __init__(self, name: str, weights: str = "none", tokens: int = 77) -> None:
        """
        Args:
            name: `<architecture>` or `<architecture>/<tag>`.
            weights: `hub` (of the tag), `hub:<tag>`, `none`, or a state-dict file.
            tokens: the longest text; at most what the model was made for.

        Raises:
            UserError: for an unknown architecture, or weights that cannot be had.
        """
        super().__init__()
        import open_clip

        architecture, _, tag = name.partition("/")
        if architecture not in open_clip.list_models():
            raise UserError(
                f"text.towers: open_clip has no architecture {architecture!r}; it has "
                + ", ".join(open_clip.list_models()[:12])
                + ", …"
            )
        source, _, hub_tag = weights.partition(":")
        from_a_hub = source == "hub"
        if from_a_hub:
            go_offline_without_network()

        def build() -> Any:
            return open_clip.create_model(
                architecture,
                pretrained=(hub_tag or tag or None) if from_a_hub else None,
                pretrained_hf=False,
                force_custom_text=True,
            )

        model = fetched(f"open_clip/{name}", build) if from_a_hub else build()
        self.text: Any = model.text
        self.text.output_tokens = False
        if source not in ("hub", "none"):
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
        features: Tensor = self.text(tokens)
        return features

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the last `blocks` blocks and what is behind them; see :func:`train_last`."""
        names = ("token_embedding", "positional_embedding", "cls_emb", "embeddings")
        train_last(self.text, blocks, embeddings, names)


class HuggingFaceText(nn.Module):
    """An encoder (ruBERT) or a decoder (GPT-2) of the library transformers, its tokens pooled."""

    def __init__(
        self,
        name: str,
        weights: str = "none",
        tokens: int = 77,
        pooling: str = "mean",
        files: Path | None = None,
    ) -> None:
        """
        Args:
            name: of a hub, or a folder with config and tokenizer.
            weights: `hub` (those of `name`), `none` (random), or a state-dict file.
            tokens: the longest text.
            pooling: mean, first or last, of the tokens of the last layer.
            files: in place of `name`, a folder with config and tokenizer.

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
        # The end that is cut and filled up is the text's end, also where a model was trained
        # with the other.
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
            last = mask.sum(dim=1) - 1
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def train_last(self, blocks: int, embeddings: bool) -> None:
        """Train the last `blocks` blocks and what is behind them; see :func:`train_last`."""
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
    """Train the last `blocks` blocks of a transformer and what comes behind them.

    Args:
        network: changed in place.
        blocks: -1 trains all, 0 nothing but, where asked for, the embeddings.
        embeddings: train the embeddings of tokens and positions too.
        embedding_names: parts of the names of their parameters.

    Raises:
        UserError: when there are not that many blocks.
    """
    lists = {n: m for n, m in network.named_modules() if isinstance(m, nn.ModuleList)}
    prefix, stack = max(lists.items(), key=lambda entry: len(entry[1]), default=("", ()))
    count = len(stack)
    if not -1 <= blocks <= count:
        raise UserError(
            f"text.trainable_blocks is {blocks}; this tower has {count} blocks: write 0..{count}, "
            "or -1 to train them all"
        )
    first = 0 if blocks == -1 else count - blocks
    for name, parameter in network.named_parameters():
        inner = name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else ""
        if any(part in name.split(".") for part in embedding_names):
            trains = embeddings
        elif inner:
            trains = int(inner.partition(".")[0]) >= first
        else:
            trains = blocks != 0
        parameter.requires_grad_(trains)
