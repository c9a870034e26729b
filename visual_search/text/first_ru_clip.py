"""The first release of ru-CLIP: CLIP's visual tower, a Russian GPT-2, and a block behind each.

A folder holds `ViT-B32-small.pt`, as it was published, and the files of the GPT: `config.json` and
its tokenizer (ruGPT-3 small's). Here it is a visual tower of open_clip, a text tower `hf/<folder>`
with `pooling: end`, and projections of the kind `ru-clip`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.model.checkpoint import FIRST_RU_CLIP
from visual_search.model.weights import read_state_dict
from visual_search.text.encoder import DualEncoder

TOKENS = 128
"""That the release reads of a text, begin and end included."""

# Prefixes of the release, and ours.
_RENAMED = {
    "visual_encoder.model.": "backbone.visual.backbone.",
    "visual_encoder.projection.": "neck.photo.projection.",
    "text_encoder.model.": "backbone.text.parts.0.model.",
    "text_encoder.projection.": "neck.text.",
    ".linear1.": ".first.",
    ".linear2.": ".second.",
    ".layer_norm.": ".norm.",
}


def is_first_ru_clip(folder: Path) -> bool:
    """Whether a folder holds the release."""
    return (folder / FIRST_RU_CLIP).is_file()


def first_ru_clip_state(folder: Path) -> dict[str, Tensor]:
    """Its tensors by the names of a :class:`DualEncoder`.

    Raises:
        UserError: when the file is damaged or of another model.
    """
    path = folder / FIRST_RU_CLIP
    made: dict[str, Tensor] = {}
    for name, value in read_state_dict(path).items():
        # Masks that older versions of transformers kept with the weights.
        if name == "logit_scale" or re.search(r"\.attn\.(bias|masked_bias)$", name):
            continue
        for theirs, ours in _RENAMED.items():
            name = name.replace(theirs, ours)
        made[name] = value.float()
    if "neck.text.first.weight" not in made or "backbone.visual.backbone.conv1.weight" not in made:
        raise UserError(f"{path} is not ru-CLIP's first release: it has other tensors")
    return made


def visual_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The shape of its visual tower, as :func:`visual_search.model.clip_folder.folder_settings`."""
    prefix = "backbone.visual.backbone."
    width, _, patch, _ = state[f"{prefix}conv1.weight"].shape
    side = round((len(state[f"{prefix}positional_embedding"]) - 1) ** 0.5)
    blocks = {name.split(".")[5] for name in state if name.startswith(f"{prefix}transformer.")}
    vision = {"image_size": side * patch, "patch_size": patch, "width": width}
    embed_dim = state[f"{prefix}proj"].shape[1]
    return {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": {**vision, "layers": len(blocks)},
    }


def load_first_ru_clip(encoder: DualEncoder, folder: Path) -> None:
    """Fill an encoder with the release.

    Raises:
        UserError: when the encoder is built another way.
    """
    state = first_ru_clip_state(folder)
    own = encoder.state_dict()
    wrong = [n for n, value in state.items() if n not in own or own[n].shape != value.shape]
    kept = ("backbone.visual.mean", "backbone.visual.std", "neck.photo.standardised.")
    wrong += [name for name in own if name not in state and not name.startswith(kept)]
    if wrong:
        raise UserError(
            f"{folder} does not fit this phase, first {wrong[0]!r}: it takes backbone.name "
            "open_clip/ViT-B-32-quickgelu, one text tower hf/<its folder> with text.pooling end, "
            "and projection.kind ru-clip of projection.dimension 1024"
        )
    encoder.load_state_dict({**own, **state})
