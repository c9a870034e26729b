"""Image backbones by name: timm, open_clip, UNICOM, a CLIP in a folder, a package's checkpoint.

A backbone takes normalised images `(N, 3, H, W)` and gives features `(N, dimension)`; the
classification head is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visual_search.common.errors import UserError, first_line
from visual_search.common.model_config import BackboneConfig
from visual_search.model.clip_folder import create_clip
from visual_search.model.freezing import freeze_unused, trunk_of
from visual_search.model.layers import LayerFeatures
from visual_search.model.patches import overlap_patches, resized_state
from visual_search.model.pooling import (
    POOLINGS,
    MapPooling,
    TokenPooling,
    no_class_token,
    pooled_maps,
)
from visual_search.model.weights import from_hub, go_offline_without_network, load_file_weights


def create_timm(model: str, config: BackboneConfig, input_size: int) -> tuple[nn.Module, int]:
    """A headless timm network and its input size; the package says the rest."""
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
            # Transformers that can resample their position embedding to any image's size.
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
    return TokenPooling(module, pooling, getattr(module, "num_prefix_tokens", 0), name)


def create_open_clip(model: str, config: BackboneConfig, input_size: int) -> tuple[nn.Module, int]:
    """An image tower and its input size; :mod:`visual_search.model.backbones` says the rest."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            "open_clip backbones need the package: pip install open_clip_torch"
        ) from error
    architecture, _, tag = model.partition("/")
    if architecture not in open_clip.list_models():
        raise UserError(
            f"open_clip has no architecture {architecture!r}; it has "
            + ", ".join(open_clip.list_models()[:12])
            + ", …"
        )
    source, _, hub_tag = config.weights.partition(":")
    if source == "hub":
        visual = _from_hub(architecture, hub_tag or tag, config.drop_path, input_size)
    else:
        visual = _tower(architecture, config.drop_path, input_size)
        if source != "none":
            load_file_weights(visual, config.weights, f"open_clip/{architecture}", prefix="visual.")
    size = _side(visual.image_size)
    name = f"open_clip/{architecture}"
    overlap_patches(getattr(visual, "trunk", visual), config.patch_overlap, name)
    return _pooled(visual, config.pooling, name), size


def _tower(architecture: str, drop_path: float, input_size: int) -> Any:
    """With random weights."""
    import open_clip
    from open_clip.model import _build_vision_tower

    config = open_clip.get_model_config(architecture)
    vision = config["vision_cfg"] | {"timm_model_pretrained": False}
    is_timm = "timm_model_name" in vision
    if drop_path and not is_timm:
        raise UserError(f"open_clip/{architecture} does not take backbone.drop_path; set it to 0")
    if drop_path:
        vision["timm_drop_path"] = drop_path
    if input_size:
        vision["image_size"] = input_size
    visual: Any = _build_vision_tower(
        config["embed_dim"], vision, config.get("quick_gelu", False), None
    )
    if is_timm:
        # Its trunk is built for timm's own size, whatever the configuration says.
        visual.set_input_size(_side(visual.image_size))
    return visual


def _from_hub(architecture: str, tag: str, drop_path: float, input_size: int) -> Any:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise UserError(
            f"open_clip/{architecture} has no weights {tag!r}; it has {', '.join(tags)}"
        )

    def build() -> nn.Module:
        disabled = logging.root.manager.disable
        logging.disable(logging.ERROR)  # it logs an error before it raises it; once is enough
        try:
            return open_clip.create_model(architecture, pretrained=tag).visual
        finally:
            logging.disable(disabled)

    visual: Any = from_hub(f"open_clip/{architecture}/{tag}", build)
    if not drop_path and input_size in (0, _side(visual.image_size)):
        return visual
    wanted = _tower(architecture, drop_path, input_size)
    wanted.load_state_dict(resized_state(visual.state_dict(), wanted))
    return wanted


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


def _pooled(visual: Any, pooling: str, name: str) -> nn.Module:
    """A tower that gives one vector an image."""
    if hasattr(visual, "output_tokens"):
        visual.output_tokens = False  # CoCa's would go to its text decoder
    if pooling == "default":
        return visual
    if hasattr(visual, "trunk"):
        # Pooled by open_clip itself, where the head holds a pooling.
        if hasattr(visual.head, "pool"):
            raise UserError(f"{name} is pooled by its head: set backbone.pooling to default")
        visual.trunk = pool_timm(visual.trunk, pooling, name)
        return visual
    if hasattr(visual, "attnpool"):
        if pooling == "cls":
            raise no_class_token(name)
        visual.attnpool = MapPooling(POOLINGS[pooling](), channels_last=False, flatten=True)
        return visual
    if visual.attn_pool is not None:
        raise UserError(f"{name} is pooled by attention: set backbone.pooling to default")
    visual.pool_type = "none"  # every token is normed and projected
    return TokenPooling(visual, pooling, 1, name)


@dataclass(frozen=True)
class Backbone:
    """A headless network and what it takes and gives."""

    module: nn.Module
    dimension: int
    """Width of its features, as measured."""
    input_size: int
    """Side in pixels of the images it was built for."""


def create_backbone(config: BackboneConfig, input_size: int = 0) -> Backbone:
    """Build a backbone.

    Args:
        config: `name` is `timm/<model>`, `open_clip/<architecture>`,
            `open_clip/<architecture>/<tag>`, `unicom/<model>` or `clip/<folder>` (see
            :mod:`visual_search.model.clip_folder`). `weights` are `none` (random), `hub` (timm's
            default weights; of a folder, its own), `hub:<tag>` (open_clip's pretrained tag, or
            timm's), `package:efficientnet_lite0` (see
            :data:`visual_search.model.weights.PACKAGED_WEIGHTS`), or a file.
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
    if config.layers or config.layer_weights:
        module = LayerFeatures(module, config.layers, config.layer_weights, size, name)
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
    """Width of the features, as one blank image gives them.

    What a library says of it is not always what comes out: a network may widen its features
    behind the pooling, or take only images of one size.

    Args:
        module: images `(N, 3, H, W)` to features `(N, dimension)`; its mode is kept.
        input_size: side of the image in pixels.
        name: of the network, for messages.

    Raises:
        UserError: when the network does not take such images, or does not give vectors.
    """
    was_training = module.training
    parameter = next(module.parameters())
    blank = parameter.new_zeros(1, 3, input_size, input_size)
    try:
        with torch.no_grad():
            features = module.eval()(blank)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise UserError(
            f"{name} does not take images of {input_size} pixels ({first_line(error)}): set "
            "dataset.input_size to a size that it takes, and dataset.input_size_valid to 0"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise UserError(f"{name} does not give one vector an image; choose another backbone.name")
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


def create_unicom(model: str, config: BackboneConfig, input_size: int) -> tuple[nn.Module, int]:
    """A UNICOM transformer and its input size; :mod:`visual_search.model.unicom` says the rest."""
    from visual_search.model import unicom

    return unicom.create_unicom(model, config, input_size)


LIBRARIES: dict[str, Callable[[str, BackboneConfig, int], tuple[nn.Module, int]]] = {
    "timm": create_timm,
    "open_clip": create_open_clip,
    "unicom": create_unicom,
    "clip": create_clip,
}
"""Builders by library: model, configuration and input size in, the headless network and its
input size out."""


def packages_of(backbone: str) -> list[str]:
    """What has to be installed, beside torch, to build a backbone of this name."""
    return ["open_clip_torch"] if backbone.startswith("open_clip/") else ["timm"]
