"""Image backbones by name: timm, open_clip, UNICOM, or a checkpoint that a package brings.

A backbone takes normalised images `(N, 3, H, W)` and gives features `(N, dimension)`; the
classification head is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig
from visual_search.freezing import freeze_unused, trunk_of
from visual_search.open_clip_backbones import create_open_clip
from visual_search.pooling import POOLINGS
from visual_search.timm_backbones import create_timm
from visual_search.unicom import create_unicom
from visual_search.weights_files import (
    PACKAGED_WEIGHTS,
    go_offline_without_network,
    load_file_weights,
    match_by_order,
    read_state_dict,
)

__all__ = [
    "LIBRARIES",
    "PACKAGED_WEIGHTS",
    "Backbone",
    "checkpoint_gradients",
    "create_backbone",
    "feature_width",
    "load_file_weights",
    "match_by_order",
    "read_state_dict",
]


@dataclass(frozen=True)
class Backbone:
    """A headless network and what it takes and gives."""

    module: nn.Module
    dimension: int
    """Width of its features, as measured."""
    input_size: int
    """Side in pixels of the photos it was built for."""


def create_backbone(config: BackboneConfig, input_size: int = 0) -> Backbone:
    """Build a backbone.

    Args:
        config: `name` is `timm/<model>`, `open_clip/<architecture>`,
            `open_clip/<architecture>/<tag>` or `unicom/<model>`. `weights` are `none` (random),
            `hub` (timm's default weights), `hub:<tag>` (open_clip's pretrained tag, or timm's),
            `package:efficientnet_lite0` (see :data:`PACKAGED_WEIGHTS`), or a state-dict file.
        input_size: side of the images in pixels; position embeddings are resampled to it. 0 is
            the model's own.

    Raises:
        UserError: for an unknown name, weights that cannot be had, weights that do not fit, or
            an option that the model does not know.
    """
    name, pooling = config.name, config.pooling
    library, _, model = name.partition("/")
    if library not in LIBRARIES or not model:
        raise UserError(
            f"backbone.name is {name!r}; write one of "
            + ", ".join(f"{library}/<model>" for library in LIBRARIES)
        )
    if pooling not in ("default", "cls", *POOLINGS):
        raise UserError(
            f"backbone.pooling is {pooling!r}; it can be default, cls, {', '.join(POOLINGS)}"
        )
    if config.weights.partition(":")[0] == "hub":
        go_offline_without_network()
    module, size = LIBRARIES[library](model, config, input_size)
    if not config.head_conv:
        drop_head_conv(module, name)
    width = feature_width(module, size, name)
    if pooling != "default":
        freeze_unused(module, size)
    return Backbone(module, width, size)


def drop_head_conv(module: nn.Module, name: str) -> None:
    """Leave out the 1x1 convolution, with its norm, that widens features for a classifier.

    Raises:
        UserError: when the network has none.
    """
    if not isinstance(getattr(module, "conv_head", None), nn.Module):
        raise UserError(
            f"{name} has no convolution in front of its pooling to leave out: set "
            "backbone.head_conv to true"
        )
    for part in ("conv_head", "bn2", "norm_head", "act2"):
        if hasattr(module, part):
            setattr(module, part, nn.Identity())


def feature_width(module: nn.Module, input_size: int, name: str = "the backbone") -> int:
    """Width of the features, as one blank photo gives them.

    What a library says of it is not always what comes out: a network may widen its features
    behind the pooling, or take only photos of one size.

    Args:
        module: photos `(N, 3, H, W)` to features `(N, dimension)`; its mode is kept.
        input_size: side of the photo in pixels.
        name: of the network, for messages.

    Raises:
        UserError: when the network does not take such photos, or does not give vectors.
    """
    was_training = module.training
    parameter = next(module.parameters())
    blank = parameter.new_zeros(1, 3, input_size, input_size)
    try:
        with torch.no_grad():
            features = module.eval()(blank)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{name} does not take photos of {input_size} pixels ({cause}): set "
            "dataset.input_size to a size that it takes, and dataset.input_size_valid to 0"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise UserError(f"{name} does not give one vector a photo; choose another backbone.name")
    return features.shape[1]


def checkpoint_gradients(module: nn.Module, name: str = "the backbone") -> None:
    """Keep a part of the activations, and compute the others again in the backward pass.

    Raises:
        UserError: when the network has no such option.
    """
    refusal = UserError(
        f"{name} knows no gradient checkpointing: set backbone.gradient_checkpointing to false"
    )
    trunk: Any = trunk_of(module)[0]
    # open_clip's residual networks have the switch, and it does nothing.
    if not hasattr(trunk, "set_grad_checkpointing") or hasattr(trunk, "attnpool"):
        raise refusal
    try:
        trunk.set_grad_checkpointing(True)
    except (AssertionError, NotImplementedError, AttributeError) as error:
        raise refusal from error


LIBRARIES: dict[str, Callable[[str, BackboneConfig, int], tuple[nn.Module, int]]] = {
    "timm": create_timm,
    "open_clip": create_open_clip,
    "unicom": create_unicom,
}
"""Builders by library: model, configuration and input size in, the headless network and its
input size out."""
