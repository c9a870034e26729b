"""Export an embedder for the submission: `model.pt` (TorchScript) and `model.json` beside it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.common.files import is_lfs_pointer, write_json, written_atomically
from visual_search.config import EmbedSettings
from visual_search.model.checkpoint import (
    Checkpoint,
    describe_model,
    load_checkpoint,
    load_torchscript,
    model_loader,
    read_description,
)
from visual_search.model.embedder import Architecture, Embedder, rebuild_embedder
from visual_search.ranking.onnx import ONNX_FILE, load_onnx
from visual_search.ranking.precision import MIN_COSINE, EmbedFn, LoadRuntime
from visual_search.ranking.rerank import Step, parse_steps

MODEL_FILE = "model.pt"
DESCRIPTION_FILE = "model.json"
RUNTIME_FILES = (ONNX_FILE, "model.xml", "model.bin")
"""The same model for other runtimes; the last two, of OpenVINO, are of earlier versions."""
POINTER = "is a git-LFS pointer, not the weights: run `git lfs pull`"


def export_torchscript(
    embedder: Embedder, architecture: Architecture, facts: Mapping[str, Any], folder: Path
) -> Path:
    """Trace an embedder and write it with its description; an earlier export is kept.

    An export of another run that was in `folder` moves to `folder/previous`, so that it can be
    taken back; one of the same run is replaced.

    Raises:
        UserError: when the traced model does not answer as the embedder does.
    """
    size = architecture.input_size
    embedder = embedder.eval().float().cpu()
    example = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of shapes that are fixed on purpose
        traced = torch.jit.trace(embedder, example)
        other = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
        cosine = float((traced(other) * embedder(other)).sum(dim=1).min())
    if not cosine >= MIN_COSINE:
        raise UserError(
            f"the TorchScript export of {architecture.backbone} does not answer as the model does "
            f"(cosine {cosine:.4f}); it was not written"
        )
    _keep_previous(folder, facts.get("run"))
    for name in RUNTIME_FILES:  # of another model
        (folder / name).unlink(missing_ok=True)
    with written_atomically(folder / MODEL_FILE) as temporary:
        traced.save(str(temporary))
    # The description comes last: a folder without it holds no finished export.
    facts = {"rerank": [], **facts}
    write_json(folder / DESCRIPTION_FILE, describe_model(architecture, facts))
    return folder / MODEL_FILE


def _keep_previous(folder: Path, run: str | None) -> None:
    if not (folder / DESCRIPTION_FILE).is_file():
        return
    _, facts = read_description(folder / DESCRIPTION_FILE)
    if facts.get("run") == run:
        return
    previous = folder / "previous"
    previous.mkdir(exist_ok=True)
    for name in (DESCRIPTION_FILE, MODEL_FILE, *RUNTIME_FILES):
        if (folder / name).is_file():
            shutil.move(folder / name, previous / name)
    print(f"the export of {facts.get('run') or 'a plain backbone'} was moved to {previous}")


def load_exported(folder: Path, device: torch.device) -> tuple[EmbedFn, Architecture]:
    """The exported embedder, ready to embed on `device`.

    Its weights go into an eager model, which answers its first batch as fast as its hundredth;
    where the library of its backbone is not installed, the TorchScript module itself is used.

    Raises:
        UserError: when something is missing or damaged; the message says what to run.
    """
    path = folder / MODEL_FILE
    if not path.is_file() or not (folder / DESCRIPTION_FILE).is_file():
        raise UserError(
            f"there is no model in {folder}: {MODEL_FILE} and {DESCRIPTION_FILE} are made by "
            "`python my_submission/to_torchscript.py runs/<name>` from a trained run"
        )
    if is_lfs_pointer(path):
        raise UserError(f"{path} {POINTER}")
    checkpoint = load_checkpoint(path)
    return load_model(checkpoint, device), checkpoint.architecture


def load_model(checkpoint: Checkpoint, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The embedder of a checkpoint or export, ready to embed on `device`.

    Raises:
        UserError: when it cannot be built, and the checkpoint is no export that runs by itself.
    """
    is_export = checkpoint.path.suffix == ".pt"
    try:
        model: nn.Module
        loader = None if is_export else model_loader(checkpoint)
        if loader is None:
            model = rebuild_embedder(checkpoint.architecture)
            model.load_state_dict(dict(checkpoint.state))
        else:
            model = loader(checkpoint)
    except (UserError, RuntimeError):
        if not is_export:
            raise
        model = load_torchscript(checkpoint.path)
    return model.eval().to(device).to(memory_format=torch.channels_last)


def exported_steps(folder: Path) -> tuple[Step, ...]:
    """The re-ranking steps that `model.json` in `folder` names; none in an older export.

    Raises:
        UserError: naming file and key of what is no step.
    """
    path = folder / DESCRIPTION_FILE
    _, facts = read_description(path)
    return parse_steps(facts.get("rerank", []), f"{path}: rerank")


def embedding_settings(folder: Path) -> EmbedSettings:
    """How the exported model's images are to be embedded: `embedding` in its description.

    Raises:
        UserError: when the description cannot be read, or says what there is not.
    """
    _, facts = read_description(folder / DESCRIPTION_FILE)
    return EmbedSettings.parsed(facts.get("embedding") or {}, str(folder / DESCRIPTION_FILE))


def exported_runtime(folder: Path, settings: EmbedSettings, input_size: int) -> LoadRuntime | None:
    """The export for ONNX Runtime, where there is one that can be used at `input_size`.

    Raises:
        UserError: when the settings ask for it and something is missing.
    """
    if settings.backend == "torch":
        return None
    path = folder / ONNX_FILE
    architecture, _ = read_description(folder / DESCRIPTION_FILE)
    if not path.is_file():
        missing = f"{folder} has no {ONNX_FILE}: export it with visual_search.main_export"
    elif is_lfs_pointer(path):
        missing = f"{path} {POINTER}"
    elif find_spec("onnxruntime") is None:
        missing = "the package onnxruntime is not installed: pip install -e '.[export]'"
    elif architecture.input_size != input_size:
        missing = f"it was exported for {architecture.input_size} px, not {input_size}"
    else:
        return partial(load_onnx, path)
    if settings.backend == "onnx":
        raise UserError(f"embedding.backend is onnx, but {missing}")
    if POINTER in missing:
        print(f"{missing}; PyTorch runs the model")
    return None
