"""Image towers of open_clip, by name; the text towers are left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig
from visual_search.patches import overlap_patches, resized_state
from visual_search.pooling import POOLINGS, MapPooling, pooled_tokens
from visual_search.timm_backbones import pool_timm
from visual_search.weights_files import from_hub, load_file_weights


def create_open_clip(model: str, config: BackboneConfig, input_size: int) -> tuple[nn.Module, int]:
    """An image tower and its input size; :mod:`visual_search.backbones` says the rest."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            "open_clip backbones need the package open_clip_torch: pip install -e '.[train]'"
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
        with _quiet_log():
            return open_clip.create_model(architecture, pretrained=tag).visual

    visual: Any = from_hub(f"open_clip/{architecture}/{tag}", build)
    if not drop_path and input_size in (0, _side(visual.image_size)):
        return visual
    wanted = _tower(architecture, drop_path, input_size)
    wanted.load_state_dict(resized_state(visual.state_dict(), wanted))
    return wanted


@contextmanager
def _quiet_log() -> Iterator[None]:
    """open_clip logs an error before it raises it; once is enough."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


def _pooled(visual: Any, pooling: str, name: str) -> nn.Module:
    """A tower that gives one vector a photo."""
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
            raise UserError(
                f"{name} has no class token: set backbone.pooling to default, avg or gem"
            )
        visual.attnpool = MapPooling(POOLINGS[pooling](), channels_last=False, flatten=True)
        return visual
    if visual.attn_pool is not None:
        raise UserError(f"{name} is pooled by attention: set backbone.pooling to default")
    visual.pool_type = "none"  # every token is normed and projected
    return pooled_tokens(visual, pooling, 1, name)
