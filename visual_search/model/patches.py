"""Patches of a vision transformer: how many there are, and where they are said to be.

A position embedding is learnt for one grid of patches. Another input size, or patches that
overlap, make another grid: the embedding is then resampled as an image is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from visual_search.common.errors import UserError


def resized_positions(positions: Tensor, tokens: int, prefix: int) -> Tensor:
    """Resample a position embedding to another number of tokens, bicubic with antialiasing.

    Args:
        positions: `(1, prefix + a * a, channels)` or `(prefix + a * a, channels)`.
        tokens: `prefix + b * b`.
        prefix: tokens without a place in the image, kept as they are.

    Returns:
        As `positions`, with `tokens` tokens.
    """
    from timm.layers import resample_abs_pos_embed

    side = math.isqrt(tokens - prefix)
    whole = positions if positions.ndim == 3 else positions[None]
    resized = resample_abs_pos_embed(whole, [side, side], num_prefix_tokens=prefix)
    return resized if positions.ndim == 3 else resized[0]


def resized_state(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state dict whose position embeddings fit `module`, whatever input size they are from.

    Absolute position embeddings (of ViT, CLIP, BEiT, …) and tables of relative ones (of Swin,
    BEiT, …) are resampled; whatever the module computes from its size is the module's own.
    Names that only one side has are left to `load_state_dict`.

    Args:
        state: of the same architecture at another input size or patch overlap.
        module: to load it into.

    Raises:
        UserError: for a tensor of another shape that is no position embedding.
    """
    result = dict(state)
    for name, ours in module.state_dict().items():
        theirs = state.get(name)
        if theirs is None or theirs.shape == ours.shape:
            continue
        resized = None
        if not ours.is_floating_point() or name.endswith("attn_mask"):
            resized = ours
        elif name.endswith("relative_position_bias_table"):
            resized = _relative(theirs, ours)
        elif name.rpartition(".")[2].startswith(("pos_embed", "positional_embedding")):
            resized = _absolute(theirs, ours)
        if resized is None or resized.shape != ours.shape:
            raise UserError(
                f"{name} has shape {tuple(theirs.shape)}, the model {tuple(ours.shape)} in its "
                "place"
            )
        result[name] = resized
    return result


def _absolute(theirs: Tensor, ours: Tensor) -> Tensor | None:
    """Tokens in rows, or a map: `(1, C, H, W)` or `(1, H, W, C)`."""
    from timm.layers import resample_abs_pos_embed_nhwc

    if theirs.ndim == 4 and theirs.shape[1] == ours.shape[1] != ours.shape[2]:
        to_last = theirs.permute(0, 2, 3, 1)
        return resample_abs_pos_embed_nhwc(to_last, list(ours.shape[2:])).permute(0, 3, 1, 2)
    if theirs.ndim == 4:
        return resample_abs_pos_embed_nhwc(theirs, list(ours.shape[1:3]))
    if theirs.ndim not in (2, 3) or theirs.shape[-1] != ours.shape[-1]:
        return None
    old, new = theirs.shape[-2], ours.shape[-2]
    # Square grids: how many tokens are no patches can be read from the counts.
    prefix = next((n for n in range(min(old, new)) if _is_square(old - n, new - n)), None)
    return None if prefix is None else resized_positions(theirs, new, prefix)


def _is_square(*counts: int) -> bool:
    return all(math.isqrt(count) ** 2 == count for count in counts)


def _relative(theirs: Tensor, ours: Tensor) -> Tensor | None:
    """Tables of `(2 * window - 1) ** 2` relative places, and 3 more with a class token."""
    from timm.layers import resize_rel_pos_bias_table

    if theirs.ndim != 2 or theirs.shape[1] != ours.shape[1]:
        return None
    extra = next((n for n in (0, 3) if _is_square(len(theirs) - n, len(ours) - n)), None)
    if extra is None:
        return None
    window = (math.isqrt(len(ours) - extra) + 1) // 2
    return resize_rel_pos_bias_table(theirs, (window, window), tuple(ours.shape))


def overlap_patches(network: nn.Module, overlap: int, name: str) -> None:
    """Let neighbouring patches share `overlap` pixels: more tokens, and no edge in between.

    The patch embedding moves by `patch - overlap` pixels, and the position embedding is
    resampled to the new grid of `(size - patch) // (patch - overlap) + 1` patches a side. As in
    Shao and Cui, "1st Place Solution in Google Universal Images Embedding" (2022).

    Args:
        network: a plain vision transformer of timm or open_clip, at its input size; changed in
            place.
        overlap: pixels, 0 to below the patch size.
        name: of the network, for messages.

    Raises:
        UserError: for another kind of network, or an overlap as large as the patch.
    """
    if overlap == 0:
        return
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    vit: Any = network
    is_timm = isinstance(network, VisionTransformer | Eva)
    if is_timm and type(vit.patch_embed) is PatchEmbed:
        projection, side = vit.patch_embed.proj, vit.patch_embed.img_size[0]
    elif hasattr(network, "conv1") and hasattr(network, "class_embedding"):  # open_clip's
        projection, side = vit.conv1, vit.image_size[0]
    else:
        raise UserError(f"{name} has no patches that can overlap: set backbone.patch_overlap to 0")
    patch = projection.kernel_size[0]
    if not 0 < overlap < patch:
        raise UserError(
            f"backbone.patch_overlap is {overlap}; the patches of {name} have {patch} pixels: "
            f"write 0..{patch - 1}"
        )
    projection.stride = (patch - overlap, patch - overlap)
    grid = (side - patch) // (patch - overlap) + 1
    if is_timm:
        _set_timm_grid(vit, grid)
    else:
        vit.grid_size = (grid, grid)
        resized = resized_positions(vit.positional_embedding.data, grid * grid + 1, 1)
        vit.positional_embedding = nn.Parameter(resized)


def _set_timm_grid(vit: Any, grid: int) -> None:
    vit.patch_embed.grid_size, vit.patch_embed.num_patches = (grid, grid), grid * grid
    vit.patch_embed.img_size = None  # else it insists on sides that the patch size divides
    if vit.pos_embed is not None:
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        vit.pos_embed = nn.Parameter(
            resized_positions(vit.pos_embed.data, grid * grid + prefix, prefix)
        )
    rope: Any = getattr(vit, "rope", None)
    if hasattr(rope, "update_feat_shape"):
        rope.update_feat_shape([grid, grid])
