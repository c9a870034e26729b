"""Tiny models in the layouts in which they are published, made on the spot with random weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

WORDS = ["красный", "круг", "квадрат", "синий", "a", "red", "chair", "стул", "стол"]
SIDE, PATCH = 32, 8


def word_tokenizer(folder: Path, *, pad: str | None, end: str = "[UNK]") -> None:
    """A tokenizer of whole words, in the files of Hugging Face's."""
    import tokenizers
    import transformers

    words = ["[PAD]", "[UNK]", *WORDS, "[END]"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if end == "[END]":
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A [END]", special_tokens=[("[END]", len(words) - 1)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, bos_token=end, eos_token=end
    ).save_pretrained(folder)


def hugging_face_clip(folder: Path, *, eos: int = len(WORDS) + 2, act: str = "quick_gelu") -> Any:
    """A CLIPModel in `folder`, with its tokenizer; returned as the library has it."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "hidden_act": act}
    sizes["num_attention_heads"] = 4
    text = {"vocab_size": len(WORDS) + 3, "max_position_embeddings": 8, "eos_token_id": eos}
    vision = {"image_size": SIDE, "patch_size": PATCH}
    config = transformers.CLIPConfig(
        text_config=sizes | text, vision_config=sizes | vision, projection_dim=16
    )
    torch.manual_seed(3)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    word_tokenizer(folder, pad="[PAD]", end="[END]")
    return model


def language_model(folder: Path, kind: str) -> Any:
    """A BERT or a GPT-2 of three blocks in `folder`, as those of a hub are."""
    import transformers

    words = len(WORDS) + 3
    if kind == "bert":
        sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        config: Any = transformers.BertConfig(vocab_size=words, intermediate_size=32, **sizes)
    else:
        config = transformers.GPT2Config(vocab_size=words, n_embd=16, n_layer=3, n_head=2)
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(folder)
    word_tokenizer(folder, pad="[PAD]" if kind == "bert" else None)
    return model


BYTE_PAIRS = """9 4
9601 4
1082 5
1088 6
1091 7
1075 8
1072 9
1089 10
1085 11
1099 12
5 6 13
4 13 14
7 8 15
14 15 16
1 0 2 3
"""
"""A model file of YouTokenToMe: ▁ к р у г а с н ы, and кр, ▁кр, уг, ▁круг, in this order; then the
tokens of unknown, padding, begin and end."""


RU_CLIP = {
    "embed_dim": 16,
    "image_resolution": SIDE,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": PATCH,
    "context_length": 9,
    "vocab_size": 17,
    "transformer_width": 32,
    "transformer_heads": 4,
    "transformer_layers": 2,
}


def ru_clip_network() -> Any:
    """The network of ru-CLIP: OpenAI's, which open_clip has under its published names."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(4)
    vision = CLIPVisionCfg(image_size=SIDE, patch_size=PATCH, width=64, layers=2)
    sizes = {"context_length": 9, "vocab_size": 17, "width": 32, "heads": 4, "layers": 2}
    text = CLIPTextCfg(**sizes, pool_type="eos", eos_id=3)
    return CLIP(16, vision, text, quick_gelu=True).eval()


def ru_clip(folder: Path) -> Any:
    """A ru-CLIP in `folder`, with its published files."""
    model = ru_clip_network()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(RU_CLIP))
    (folder / "bpe.model").write_text(BYTE_PAIRS)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


def padded(rows: Sequence[list[int]]) -> Tensor:
    """Token numbers at the context length of :func:`ru_clip`."""
    return torch.tensor([row + [0] * (9 - len(row)) for row in rows])


def first_ru_clip(folder: Path) -> Any:
    """The first release in `folder`, with masks as older versions of transformers kept them.

    Returned are `encode_image` of pixels and `encode_text` of rows of token numbers.
    """
    gpt = language_model(folder, "gpt2")
    (folder / "model.safetensors").unlink()

    def encoder(model: nn.Module) -> nn.ModuleDict:
        linear1, linear2 = nn.Linear(16, 12, bias=False), nn.Linear(12, 12, bias=False)
        block = {"linear1": linear1, "linear2": linear2, "layer_norm": nn.LayerNorm(12)}
        return nn.ModuleDict({"model": model, "projection": nn.ModuleDict(block)})

    visual, text = encoder(ru_clip_network().visual), encoder(gpt)
    parts = nn.ModuleDict({"visual_encoder": visual, "text_encoder": text}).eval()
    more = {"logit_scale": torch.tensor(2.6593), "text_encoder.model.h.0.attn.bias": torch.ones(1)}
    torch.save({**parts.state_dict(), **more}, folder / "ViT-B32-small.pt")

    def project(block: Any, features: Tensor) -> Tensor:
        first = block["linear1"](features)
        second = block["linear2"](first * torch.sigmoid(1.702 * first))
        return nn.functional.normalize(block["layer_norm"](first + second), dim=1)

    def encode_text(rows: Sequence[Sequence[int]]) -> Tensor:
        last = [text["model"](torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        return project(text["projection"], torch.stack(last))

    return SimpleNamespace(
        encode_image=lambda pixels: project(visual["projection"], visual["model"](pixels)),
        encode_text=encode_text,
    )
