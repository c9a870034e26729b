"""Backbones from timm, by name, without their heads."""

from __future__ import annotations

from typing import Any

from torch import nn

from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig
from visual_search.patches import overlap_patches
from visual_search.pooling import pooled_maps, pooled_tokens
from visual_search.weights_files import from_hub, load_file_weights


def create_timm(model: str, config: BackboneConfig, input_size: int) -> tuple[nn.Module, int]:
    """A headless timm network and its input size; :mod:`visual_search.backbones` says the rest."""
    import timm

    if not timm.is_model(model.partition(".")[0]):
        near = timm.list_models(f"*{model.partition('.')[0][:8]}*")[:6]
        raise UserError(
            f"timm has no model {model!r}" + (f"; near it: {', '.join(near)}" if near else "")
        )
    options = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    module: Any = _build(model, config.weights, options)
    own_size = int(module.pretrained_cfg["input_size"][-1])
    if input_size not in (0, own_size):
        module = _resized(module, model, config.weights, options, input_size)
    overlap_patches(module, config.patch_overlap, f"timm/{model}")
    return pool_timm(module, config.pooling, f"timm/{model}"), input_size or own_size


def _build(model: str, weights: str, options: dict[str, Any]) -> nn.Module:
    """With weights and without a head."""
    import timm

    source, _, tag = weights.partition(":")
    is_hub = source == "hub"
    full_name = f"{model}.{tag}" if is_hub and tag else model
    # A head is built where a checkpoint file brings one, so that it loads strictly.
    with_head = not is_hub and source != "none"
    heads = {} if with_head else {"num_classes": 0}

    def build(**more: Any) -> nn.Module:
        try:
            # Transformers that can resample their position embedding to any photo's size.
            return timm.create_model(
                full_name, pretrained=is_hub, dynamic_img_size=True, **heads, **options, **more
            )
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            return timm.create_model(full_name, pretrained=is_hub, **heads, **options, **more)

    module: Any
    try:
        module = from_hub(f"timm/{full_name}", build) if is_hub else build()
    except TypeError as error:
        if "drop_path" in options or "drop_path_rate" in str(error):
            raise UserError(f"timm/{model} does not take backbone.drop_path: {error}") from error
        raise
    if with_head:
        load_file_weights(module, weights, f"timm/{model}")
        module.reset_classifier(0)
    return module


def _resized(
    module: Any, model: str, weights: str, options: dict[str, Any], size: int
) -> nn.Module:
    """The network for another input size; what takes any size is left as it is."""
    if hasattr(module, "set_input_size"):
        module.set_input_size((size, size))
    elif module.pretrained_cfg.get("fixed_input_size"):
        try:
            return _build(model, weights, {**options, "img_size": size})
        except TypeError:  # it has no such option; whether the size suits it is tried later
            return module
    return module


def pool_timm(module: Any, pooling: str, name: str) -> nn.Module:
    """Give a headless timm network another pooling than its own.

    Raises:
        UserError: where the network's features cannot be pooled so.
    """
    if pooling == "default" or pooled_maps(module, pooling, name):
        return module
    refusal = UserError(f"{name} cannot be pooled by {pooling}: set backbone.pooling to default")
    if not isinstance(getattr(module, "global_pool", None), str):
        raise refusal
    if module.global_pool == {"avg": "avg", "cls": "token"}.get(pooling):
        return module  # its own; a norm behind it is not one before it
    try:
        module.reset_classifier(0, global_pool="")
    except (AssertionError, TypeError, RuntimeError) as error:
        raise refusal from error
    return pooled_tokens(module, pooling, getattr(module, "num_prefix_tokens", 0), name)
