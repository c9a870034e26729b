"""Saving and finding trained embedders. Weights are safetensors; nothing is unpickled.

A checkpoint is a folder: `model.safetensors` (embedder), `head.safetensors` (its classification
head) and `model.json` (architecture and where it comes from), the last written at the end: a
folder without it is half-written and is never loaded. An export has `model.pt` (TorchScript) beside
them, for the contest; TorchScript can run code of its author while it loads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.common.files import (
    open_regular,
    read_json,
    write_json,
    written_atomically,
)
from visual_search.model.embedder import Architecture, Embedder, rebuild_embedder
from visual_search.model.weights import read_state_dict

FIRST_RU_CLIP = "ViT-B32-small.pt"
"""The weights of ru-CLIP's first release (:mod:`visual_search.text.first_ru_clip`)."""

MODEL_FORMAT = 2
"""Version of `model.json`; raised when an older reader would misread it: 2 is of an ensemble, a
single model is written as 1."""

LOADERS = {"image-text": "visual_search.text.search:load_image_side"}
"""By kind of model, who makes its image side of a checkpoint: `module:function`, imported only
for such a model, since the evaluator has no package that the text side needs. An embedder of
images alone needs none."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained embedder that was found."""

    architecture: Architecture
    state: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """What `model.json` says beside the architecture: run, phase, epoch, mAP, …"""
    path: Path

    def embedder(self) -> Embedder:
        """The embedder with its weights, for inference."""
        found = rebuild_embedder(self.architecture)
        found.load_state_dict(dict(self.state))
        return found.eval()


def save_checkpoint(
    folder: Path,
    architecture: Architecture,
    embedder: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Write a checkpoint so that a reader meets the old one or the new one, never a mixture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").unlink(missing_ok=True)
    save_weights(folder / "model.safetensors", embedder)
    save_weights(folder / "head.safetensors", head)
    write_json(folder / "model.json", describe_model(architecture, facts))


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, atomically."""
    from safetensors.torch import save_file

    with written_atomically(path) as temporary:
        save_file({key: value.contiguous().cpu() for key, value in state.items()}, temporary)


def describe_model(architecture: Architecture, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `model.json`."""
    return {
        "format": MODEL_FORMAT if architecture.members else 1,
        "kind": kind_of(facts),
        "architecture": dataclasses.asdict(architecture),
        **facts,
    }


def read_description(path: Path) -> tuple[Architecture, dict[str, Any]]:
    """Architecture and facts of a `model.json`.

    Raises:
        UserError: when it is missing, damaged, or of a newer format.
    """
    try:
        values = read_json(path)
        version = values.pop("format")
        if version > MODEL_FORMAT:
            raise UserError(f"{path} has format {version}; this kit reads up to {MODEL_FORMAT}")
        return Architecture.parsed(values.pop("architecture")), values
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a model description: {error!r}") from error


def find_checkpoint(source: Path, *, trust: bool = False) -> Path:
    """The file of weights that :func:`load_checkpoint` reads; `model.json` lies beside it.

    Args, raises: as there, less what a damaged file would raise.
    """
    if source.is_dir():
        places = [source, source / "best", source / "last"]
        found = [place for place in places if (place / "model.json").is_file()]
        if not found:
            raise UserError(
                f"{source} holds no finished checkpoint (no best/model.json or last/model.json); "
                "train it first, or name another run"
            )
        source = found[0] / "model.safetensors"
        if not source.is_file() and source.with_suffix(".pt").is_file():
            source = source.with_suffix(".pt")
    if not source.is_file():
        raise UserError(f"{source} is neither a run folder nor a model file")
    if source.suffix == ".pt" and not trust:
        script, source = source, source.with_suffix(".safetensors")
        if not source.is_file():
            folder = script.parent
            raise UserError(
                f"{script} is TorchScript, which can run code of its author while it loads, and "
                f"{source.name} is not beside it; if you trust it, write that, once: python "
                f"my_submission/to_torchscript.py {folder} --trust --output {folder}"
            )
    return source


def load_checkpoint(source: Path, *, trust: bool = False) -> Checkpoint:
    """Load a run's best model, a checkpoint folder, an export, or a file of theirs.

    Args:
        source: `runs/<name>`, `runs/<name>/last`, an export's folder, a `model.safetensors` in one
            of them, or a `model.pt` with its `model.json` beside it. Where both files are there,
            safetensors are read.
        trust: read a `model.pt` alone, which can run code of its author.

    Raises:
        UserError: when there is no such model, it is damaged, or is TorchScript alone without
            `trust`; the message says what to do.
    """
    source = find_checkpoint(source, trust=trust)
    architecture, facts = read_description(source.with_name("model.json"))
    is_export = source.suffix == ".pt"
    state = dict(load_torchscript(source).state_dict()) if is_export else read_state_dict(source)
    return Checkpoint(architecture, state, facts, source)


def plain_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors less a whitening, which is fitted to the very model in front of it."""
    whitened = checkpoint.architecture.neck == "whitening"
    return {
        name: value
        for name, value in checkpoint.state.items()
        if not (whitened and name.startswith("neck."))
    }


def without_whitening(checkpoint: Checkpoint) -> Checkpoint:
    """The model in front of its whitening, or as it is where it has none."""
    if checkpoint.architecture.neck != "whitening":
        return checkpoint
    width = checkpoint.state["neck.projection"].shape[0]
    architecture = dataclasses.replace(checkpoint.architecture, neck="none", dimension=width)
    return dataclasses.replace(checkpoint, architecture=architecture, state=plain_state(checkpoint))


def fingerprint(source: Path) -> str:
    """SHA-256 of the weights that a phase starts from, or an evaluation is of, as hex digits.

    Args:
        source: as of :func:`load_checkpoint`, or a folder of ru-CLIP's first release.
    """
    released = source / FIRST_RU_CLIP
    path = released if released.is_file() else find_checkpoint(source)
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def load_torchscript(path: Path) -> nn.Module:
    """A TorchScript module on the CPU, whatever device it was exported from.

    Raises:
        UserError: when the file is damaged.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, yet what the submission format is
            return torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise UserError(f"{path} is not a readable TorchScript file: {error}") from error


def kind_of(facts: Mapping[str, Any]) -> str:
    """The kind of model that `model.json` tells of; of earlier versions, which named none, too."""
    return str(facts.get("kind", "image-text" if isinstance(facts.get("text"), dict) else "image"))


def model_loader(found: Checkpoint) -> Callable[[Checkpoint, int], nn.Module] | None:
    """What makes the embedder of a checkpoint, by :data:`LOADERS`; None for images alone.

    It takes the checkpoint and the images' side in pixels, 0 for the model's own.

    Raises:
        UserError: for a kind that this kit does not know.
    """
    kind = kind_of(found.facts)
    if kind == "image":
        return None
    if kind not in LOADERS:
        known = ", ".join(("image", *LOADERS))
        raise UserError(f"{found.path} is a model of kind {kind!r}; this kit reads {known}")
    module, _, function = LOADERS[kind].partition(":")
    return getattr(importlib.import_module(module), function)


def knows_texts(found: Checkpoint) -> bool:
    """Whether it is of image–text training."""
    return kind_of(found.facts) == "image-text"


def dimension_of(found: Checkpoint) -> int:
    """Of the embeddings: of the space shared with texts, where there is one."""
    if knows_texts(found):
        return int(found.facts["text"]["dimension"])
    return found.architecture.dimension
