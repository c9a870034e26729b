"""The layers of a backbone in order, and which of them are trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from visual_search.common.errors import UserError
from visual_search.common.model_config import BackboneConfig

# The layers of networks that do not name them themselves, in timm's notation.
OPEN_CLIP_VIT = {
    "stem": r"^conv1|class_embedding|positional_embedding|ln_pre",
    "blocks": r"^transformer\.resblocks\.(\d+)",
}
OPEN_CLIP_RESNET = {"stem": r"^conv\d|bn\d", "blocks": r"^layer(\d+)\.(\d+)"}


def trunk_of(backbone: Any) -> tuple[Any, str]:
    """The network inside its wrappers, and the prefix of its parameters' names."""
    prefix = ""
    while hasattr(backbone, "trunk"):
        backbone, prefix = backbone.trunk, f"{prefix}trunk."
    return backbone, prefix


def layer_depths(backbone: nn.Module) -> dict[str, int]:
    """How deep each parameter lies: 0 is the stem, the blocks count from 1, the rest is deepest.

    With `layers = max(depths.values()) + 1`, a layer-wise decay d multiplies the learning rate of
    a parameter by `d ** (layers - 1 - depth)`.

    Returns:
        Depth by the parameter's name, for every parameter of `backbone`.

    Raises:
        UserError: when the network's layers are not known.
    """
    groups, tail = _layers(backbone, coarse=False)
    return {name: groups.get(name, tail) for name, _ in backbone.named_parameters()}


def _layers(backbone: nn.Module, coarse: bool) -> tuple[dict[str, int], int]:
    """Depth of the stem and the blocks by name, and that of whatever comes behind them."""
    from timm.models import group_parameters

    trunk, prefix = trunk_of(backbone)
    matcher = _matcher(trunk, coarse)
    # Heads that match nothing come last in timm's grouping; they are no block.
    depths = {
        name: depth
        for name, depth in group_parameters(trunk, matcher, reverse=True).items()
        if not isinstance(matcher, dict) or _is_named(name, matcher)
    }
    # Numbers without gaps: a network need not have every layer that its pattern knows.
    numbers = {depth: number for number, depth in enumerate(sorted(set(depths.values())))}
    return {prefix + name: numbers[depth] for name, depth in depths.items()}, len(numbers)


def _matcher(trunk: Any, coarse: bool) -> Any:
    if hasattr(trunk, "group_matcher"):
        return trunk.group_matcher(coarse=coarse)
    if hasattr(trunk, "class_embedding"):
        return OPEN_CLIP_VIT
    if hasattr(trunk, "attnpool"):
        return OPEN_CLIP_RESNET
    raise UserError(
        "the layers of this backbone are not known: set backbone.frozen_stages to 0, "
        "backbone.trainable_blocks to -1 or 0, and optim.layer_decay to 1"
    )


def _is_named(name: str, matcher: dict[str, Any]) -> bool:
    patterns = []
    for entry in matcher.values():
        patterns += [part[0] for part in entry] if isinstance(entry, list | tuple) else [entry]
    return any(pattern is not None and re.match(pattern, name) for pattern in patterns)


def freeze_backbone(backbone: nn.Module, config: BackboneConfig, input_size: int) -> None:
    """Freeze what the configuration says is not to be trained, in place.

    Args:
        backbone: of an embedder.
        config: which blocks and stages train. A block is a layer as :func:`layer_depths` counts
            them; stages are timm's own coarse groups, the stem being the first.
        input_size: side of the training images, pixels.

    Raises:
        UserError: when the backbone has not that many, or they are not known.
    """
    blocks, stages = config.trainable_blocks, config.frozen_stages
    if blocks == 0:
        backbone.requires_grad_(False)
    elif blocks != -1:
        depths, tail = _layers(backbone, coarse=False)
        if not 0 < blocks < tail:
            raise UserError(
                f"backbone.trainable_blocks is {blocks}; this backbone has {tail - 1} blocks: "
                f"write 0..{tail - 1}, or -1 to train everything"
            )
        _freeze_in_front_of(tail - blocks, backbone, depths)
    if stages:
        depths, tail = _layers(backbone, coarse=True)
        if not 0 < stages < tail:
            raise UserError(
                f"backbone.frozen_stages is {stages}; this backbone has {tail} stages, and at "
                "least one must be trained"
            )
        _freeze_in_front_of(stages, backbone, depths)
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        freeze_unused(backbone, input_size)


def _freeze_in_front_of(first: int, backbone: nn.Module, depths: Mapping[str, int]) -> None:
    for name, parameter in backbone.named_parameters():
        if depths.get(name, first) < first:
            parameter.requires_grad_(False)


def freeze_unused(backbone: nn.Module, input_size: int) -> None:
    """Freeze what has no part in the features, such as class-token layers where patches are pooled.

    Processes that train together would wait for its gradient in vain.

    Args:
        backbone: images `(N, 3, H, W)` to features; its mode is kept.
        input_size: side of the images in pixels.
    """
    was_training = backbone.training
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    blank = trained[0].new_zeros(1, 3, input_size, input_size)
    with torch.enable_grad():
        features = backbone.eval()(blank)
        gradients = torch.autograd.grad(features.sum(), trained, allow_unused=True)
    backbone.train(was_training)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def hold_frozen(backbone: nn.Module, batchnorms: bool) -> None:
    """Keep the running statistics of frozen batch norms, or of all; call it after `train()`.

    Args:
        backbone: in training mode.
        batchnorms: hold those of trained layers as well.
    """
    for part in backbone.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            trained = any(parameter.requires_grad for parameter in part.parameters())
            if batchnorms or not trained:
                part.eval()


def hold_recomputed(model: nn.Module) -> None:
    """Let a batch norm's running statistics move once where its activations are computed twice.

    A checkpoint computes them again in the backward pass, of the same rows.

    Args:
        model: with all its norms; those that replace one later have to be told again.
    """
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.register_forward_pre_hook(_hold_in_backward)
            # A checkpoint ends what it computes again, by an exception, once it has all it needs.
            part.register_forward_hook(_let_go, always_call=True)


def _hold_in_backward(norm: Any, _: Any) -> None:
    # A compiled graph computes again without a side effect, and cannot ask.
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked -= 1
        norm.held_momentum, norm.momentum = norm.momentum, 0.0


def _let_go(norm: Any, *_: Any) -> None:
    if hasattr(norm, "held_momentum"):
        norm.momentum = norm.held_momentum
        del norm.held_momentum
