"""A CLIP in a folder of one's own, read into open_clip's towers; nothing is fetched or run.

| layout | files |
|---|---|
| Hugging Face's | `config.json` of a CLIPModel, `model.safetensors` or `.bin`, a tokenizer |
| ru-CLIP's | `config.json` (`embed_dim`, …), `pytorch_model.bin`, `bpe.model` |

ru-CLIP keeps the names of OpenAI's first release, as open_clip does; Hugging Face's are renamed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.common.files import read_json
from visual_search.common.model_config import BackboneConfig
from visual_search.model.patches import resized_state
from visual_search.model.weights import read_state_dict

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of OpenAI's CLIP: what a folder means that names no mean."""
STD = (0.26862954, 0.26130258, 0.27577711)

BPE_FILE = "bpe.model"
"""The tokenizer of ru-CLIP's layout."""

# Names within a tower of Hugging Face's, and ours.
_RENAMED = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


def is_clip_folder(folder: Path) -> bool:
    """Whether a folder holds a CLIP in one of the layouts above."""
    values = _json(folder / "config.json")
    return "embed_dim" in values or values.get("model_type") == "clip"


def clip_settings(folder: Path) -> dict[str, Any]:
    """What shapes both towers: `embed_dim`, `quick_gelu`, `vision_cfg`, `text_cfg`, as open_clip

    has them; and `mean` and `std` of the pixels, three numbers each, of 0..1.

    Raises:
        UserError: when the folder holds no CLIP.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: name the folder of a CLIP")
    values = _json(path)
    try:
        if "embed_dim" in values:
            return _of_ru_clip(values)
        if values.get("model_type") != "clip":
            raise UserError(
                f"{path} is of a {values.get('model_type', 'nameless')} model, not of a CLIP: "
                "name a folder of Hugging Face's CLIPModel or of ru-CLIP"
            )
        return _of_hugging_face(values, _json(folder / "preprocessor_config.json"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} describes no CLIP: {error!r}") from error


def open_clip_settings(name: str) -> dict[str, Any]:
    """The same of `<architecture>/<tag>` of open_clip, whose weights are of a hub.

    Raises:
        UserError: when there is none of that name.
    """
    import open_clip

    architecture, _, tag = name.partition("/")
    settings = open_clip.get_model_config(architecture)
    pixels = open_clip.get_pretrained_cfg(architecture, tag)
    if settings is None or not pixels:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(
            f"open_clip has no weights {tag!r} of {architecture}; it has {known}: write "
            "open_clip/<architecture>/<tag>"
        )
    return {**settings, "mean": pixels.get("mean") or MEAN, "std": pixels.get("std") or STD}


def _json(path: Path) -> dict[str, Any]:
    """An object of a file; empty where there is none."""
    try:
        values = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    return values if isinstance(values, dict) else {}


def _of_ru_clip(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "embed_dim": values["embed_dim"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": values["image_resolution"],
            "patch_size": values["vision_patch_size"],
            "width": values["vision_width"],
            "layers": values["vision_layers"],
        },
        "text_cfg": {
            "context_length": values["context_length"],
            "vocab_size": values["vocab_size"],
            "width": values["transformer_width"],
            "heads": values["transformer_heads"],
            "layers": values["transformer_layers"],
            "pool_type": "eos",
            "eos_id": values.get("eos_id", 3),
        },
        "mean": list(values.get("mean") or MEAN),
        "std": list(values.get("std") or STD),
    }


def _of_hugging_face(values: Mapping[str, Any], pixels: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import CLIPConfig

    config = CLIPConfig.from_dict(dict(values))  # with the library's own defaults
    vision, text = config.vision_config, config.text_config
    for part in (vision, text):
        if part.hidden_act not in ("quick_gelu", "gelu") or part.layer_norm_eps != 1e-5:
            raise ValueError(f"hidden_act {part.hidden_act}, layer_norm_eps {part.layer_norm_eps}")
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            # Where a configuration of old says 2, the library looks for the highest number.
            "pool_type": "argmax" if text.eos_token_id == 2 else "eos",
            "eos_id": text.eos_token_id,
        },
        "mean": list(pixels.get("image_mean") or MEAN),
        "std": list(pixels.get("image_std") or STD),
    }


def clip_state(folder: Path, *, visual: bool) -> dict[str, Tensor]:
    """The tensors of the image or the text tower by open_clip's names.

    Raises:
        UserError: when there is no readable weights file.
    """
    names = ("model.safetensors", "pytorch_model.bin")
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} holds no weights: {' or '.join(names)}")
    state = read_state_dict(found[0])
    if any(name.startswith("vision_model.") for name in state):
        state = _renamed(state)
    return {
        name.removeprefix("visual."): value.float()
        for name, value in state.items()
        if name.startswith("visual.") == visual and name != "logit_scale"
    }


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names to ours; query, key and value stand in one matrix here."""
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith((".position_ids", "logit_scale")):
            continue
        if name.endswith("_projection.weight"):
            key = "visual.proj" if name.startswith("visual") else "text_projection"
            made[key] = value.T
            continue
        tower, _, rest = name.partition(".")
        for theirs, ours in _RENAMED.items():
            rest = rest.replace(theirs, ours)
        rest = ("visual." if tower == "vision_model" else "") + rest
        part = re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", rest)
        if part is None:
            made[rest] = value
        elif part[2] == "q":
            others = [state[name.replace(".q_proj.", f".{o}_proj.")] for o in "kv"]
            made[f"{part[1]}.attn.in_proj_{part[3]}"] = torch.cat([value, *others])
    return made


def folder_settings(place: str) -> dict[str, Any]:
    """The settings of the image tower in a folder.

    In place of the folder there may be the settings themselves, as JSON: those of a model that
    was trained from the folder, which need not be there any more.
    """
    if place.startswith("{"):
        return dict(json.loads(place))
    settings = clip_settings(Path(place))
    del settings["text_cfg"]
    return settings


def create_clip(place: str, config: BackboneConfig, input_size: int) -> tuple[nn.Module, int]:
    """The image tower, its projection included, and its input size.

    Raises:
        UserError: when the folder does not fit, or `backbone.mean` is not what it was trained with.
    """
    from open_clip.model import _build_vision_tower

    settings, name = folder_settings(place), f"clip/{place}"
    if config.pooling != "default" or config.drop_path or config.patch_overlap:
        raise UserError(
            f"{name} takes no backbone.pooling, drop_path or patch_overlap: leave them out"
        )
    if config.weights not in ("hub", "none"):
        raise UserError(f"backbone.weights is {config.weights!r}; of {name} they are hub or none")
    size = input_size or settings["vision_cfg"]["image_size"]
    vision = settings["vision_cfg"] | {"image_size": size}
    tower = _build_vision_tower(settings["embed_dim"], vision, settings["quick_gelu"], None)
    if config.weights != "none":
        for key in ("mean", "std"):
            ours, theirs = getattr(config, key), settings[key]
            if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-3:
                raise UserError(
                    f"backbone.{key} is {list(ours)}, but {name} was trained with {theirs}: write "
                    "that"
                )
        _load(tower, clip_state(Path(place), visual=True), place)
    return tower, size


def create_clip_text(folder: Path, *, weights: bool) -> Any:
    """The text tower, its projection included: token numbers `(n, context length)` to features.

    Raises:
        UserError: when the folder holds no CLIP, or weights that do not fit.
    """
    from open_clip.model import _build_text_tower

    settings = clip_settings(folder)
    tower = _build_text_tower(settings["embed_dim"], settings["text_cfg"], settings["quick_gelu"])
    if weights:
        _load(tower, clip_state(folder, visual=False), str(folder))
    return tower


def _load(tower: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    try:
        tower.load_state_dict(resized_state(state, tower))
    except (RuntimeError, UserError) as error:
        raise UserError(f"the weights in {place} do not fit its config.json: {error}") from error
