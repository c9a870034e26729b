"""Tiny models in the layouts in which they are published, made on the spot with random weights."""

import json
from collections.abc import Sequence
from pathlib import Path
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


class _Block(nn.Module):
    """A residual attention block as OpenAI released it, on the sequence first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        hidden = self.mlp[0](self.ln_2(x))
        result: Tensor = x + self.mlp[1](hidden * torch.sigmoid(1.702 * hidden))
        return result


class RuClip(nn.Module):
    """The network of ru-CLIP, written down from its paper's equations with the published names."""

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        width, dimension = config["vision_width"], config["embed_dim"]
        side = config["image_resolution"] // config["vision_patch_size"]
        visual: Any = nn.Module()
        visual.conv1 = nn.Conv2d(
            3, width, config["vision_patch_size"], config["vision_patch_size"], bias=False
        )
        visual.class_embedding = nn.Parameter(torch.randn(width))
        visual.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width))
        visual.ln_pre, visual.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        visual.transformer = self._blocks(width, width // 64, config["vision_layers"])
        visual.proj = nn.Parameter(torch.randn(width, dimension))
        self.visual: Any = visual
        wide = config["transformer_width"]
        self.transformer: Any = self._blocks(
            wide, config["transformer_heads"], config["transformer_layers"]
        )
        self.token_embedding = nn.Embedding(config["vocab_size"], wide)
        self.positional_embedding = nn.Parameter(torch.randn(config["context_length"], wide))
        self.ln_final = nn.LayerNorm(wide)
        self.text_projection = nn.Parameter(torch.randn(wide, dimension))
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))

    @staticmethod
    def _blocks(width: int, heads: int, layers: int) -> nn.Module:
        made = nn.Module()
        made.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        return made

    def encode_image(self, pixels: Tensor) -> Tensor:
        visual = self.visual
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
        first = visual.class_embedding.expand(len(pixels), 1, -1)
        x = visual.ln_pre(torch.cat([first, patches], 1) + visual.positional_embedding)
        x = x.transpose(0, 1)
        for block in visual.transformer.resblocks:
            x = block(x, None)
        result: Tensor = visual.ln_post(x[0]) @ visual.proj
        return result

    def encode_text(self, rows: Sequence[Sequence[int]]) -> Tensor:
        length = len(self.positional_embedding)
        found = []
        for row in rows:
            x = self.token_embedding(torch.tensor(row)) + self.positional_embedding[: len(row)]
            mask = torch.full((len(row), len(row)), float("-inf")).triu(1)
            assert len(row) <= length
            for block in self.transformer.resblocks:
                x = block(x[:, None], mask)[:, 0]
            found.append(self.ln_final(x)[-1] @ self.text_projection)
        return torch.stack(found)


def ru_clip(folder: Path) -> RuClip:
    """A ru-CLIP in `folder`, with its published files."""
    torch.manual_seed(4)
    model = RuClip(RU_CLIP).eval()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(RU_CLIP))
    (folder / "bpe.model").write_text(BYTE_PAIRS)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


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


class FirstRuClip(nn.Module):
    """The network of ru-CLIP's first release, with the published names."""

    def __init__(self, gpt: nn.Module, width: int) -> None:
        super().__init__()
        self.visual_encoder: Any = nn.Module()
        self.visual_encoder.model = RuClip(RU_CLIP).visual
        self.text_encoder: Any = nn.Module()
        self.text_encoder.model = gpt
        for encoder, features in ((self.visual_encoder, 16), (self.text_encoder, 16)):
            block = encoder.projection = nn.Module()
            block.linear1 = nn.Linear(features, width, bias=False)
            block.linear2 = nn.Linear(width, width, bias=False)
            block.layer_norm = nn.LayerNorm(width)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))

    @staticmethod
    def project(block: Any, features: Tensor) -> Tensor:
        first = block.linear1(features)
        second = block.linear2(first * torch.sigmoid(1.702 * first))
        return nn.functional.normalize(block.layer_norm(first + second), dim=1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        stand_in: Any = nn.Module()
        stand_in.visual = self.visual_encoder.model
        return self.project(self.visual_encoder.projection, RuClip.encode_image(stand_in, pixels))

    def encode_text(self, rows: Sequence[Sequence[int]]) -> Tensor:
        last = [self.text_encoder.model(torch.tensor([r])).last_hidden_state[0, -1] for r in rows]
        return self.project(self.text_encoder.projection, torch.stack(last))


def first_ru_clip(folder: Path) -> FirstRuClip:
    """The first release in `folder`, with masks as older versions of transformers kept them."""
    gpt = language_model(folder, "gpt2")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(5)
    model = FirstRuClip(gpt, 12).eval()
    masks = {"text_encoder.model.h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    torch.save({**model.state_dict(), **masks}, folder / "ViT-B32-small.pt")
    return model
