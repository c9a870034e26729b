"""The network that sees the photo, built and frozen as the configuration says."""

from __future__ import annotations

from torch import nn

from visual_search.config import BackboneConfig, NeckConfig
from visual_search.freezing import freeze_stages, freeze_unused, train_last_blocks
from visual_search.model import Architecture, Embedder, build_embedder


def build_tower(
    backbone: BackboneConfig, input_size: int, neck: NeckConfig, *, continued: bool
) -> tuple[Embedder, Architecture]:
    """An embedder.

    Args:
        backbone: the network.
        input_size: side of the photos in validation and afterwards, pixels.
        neck: behind it.
        continued: whether a model's weights follow, so that the backbone's own are not wanted.

    Raises:
        UserError: for anything that does not fit; the message names the key.
    """
    return build_embedder(
        backbone.name,
        "none" if continued else backbone.weights,
        input_size,
        backbone.mean,
        backbone.std,
        neck.kind,
        neck.dimension,
        backbone.drop_path,
        pooling=backbone.pooling,
        patch_overlap=backbone.patch_overlap,
        gradient_checkpointing=backbone.gradient_checkpointing,
        neck_dropout=neck.dropout,
        head_conv=backbone.head_conv,
    )


def freeze_tower(network: nn.Module, backbone: BackboneConfig, input_size: int) -> None:
    """Freeze what is not to be trained, in place.

    Args:
        network: the backbone of an embedder.
        backbone: which blocks and stages train.
        input_size: side of the training photos, pixels.
    """
    if backbone.trainable_blocks >= 0:
        train_last_blocks(network, backbone.trainable_blocks)
    freeze_stages(network, backbone.frozen_stages)
    if any(parameter.requires_grad for parameter in network.parameters()):
        freeze_unused(network, input_size)
