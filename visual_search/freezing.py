"""Parts of a backbone that are not trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from visual_search.errors import UserError


def freeze_stages(backbone: Any, stages: int) -> None:
    """Stop the gradient of the first `stages` stages, the stem being the first.

    The stages are timm's own coarse groups, as its layer-wise learning-rate decay uses them.

    Raises:
        UserError: when the backbone is not timm's, or has not that many stages.
    """
    if stages == 0:
        return
    if not hasattr(backbone, "group_matcher"):
        raise UserError("backbone.frozen_stages works with timm backbones; set it to 0")
    from timm.models import group_parameters

    names = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=False)
    if not 0 < stages < len(names):
        raise UserError(
            f"backbone.frozen_stages is {stages}; this backbone has {len(names)} stages, and at "
            "least one must be trained"
        )
    frozen = {name for stage in sorted(names)[:stages] for name in names[stage]}
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name not in frozen)


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
