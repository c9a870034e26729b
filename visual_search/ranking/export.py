"""Export an embedder for the submission, and load what was exported.

`model.pt` (TorchScript) is what the contest wants, `model.safetensors` has its weights for all
else, `model.json` describes both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError, first_line
from visual_search.common.files import is_lfs_pointer, write_bytes, write_json
from visual_search.common.model_config import EmbedSettings
from visual_search.model.checkpoint import (
    Checkpoint,
    describe_model,
    load_checkpoint,
    load_torchscript,
    model_loader,
    read_description,
    save_weights,
)
from visual_search.model.embedder import Architecture, Embedder, rebuild_embedder
from visual_search.model.patches import resized_state
from visual_search.ranking.inference_plan import (
    MIN_COSINE,
    EmbedFn,
    LoadRuntime,
    converted,
    in_memory_format,
    memory_format_of,
)
from visual_search.ranking.rerank import Step, parse_steps

MODEL_FILE = "model.pt"
WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"
ONNX_FILE = "model.onnx"
RUNTIME_FILES = (ONNX_FILE, "model.xml", "model.bin")
"""The same model for other runtimes; the last two, of OpenVINO, are of earlier versions."""
STAGED = ".export.tmp"
"""Where an export lies till it is known to answer."""
POINTER = "is a git-LFS pointer, not the weights: run `git lfs pull`"


Shout = Callable[[str], None]
"""Told what the ranker has to do without; it prints it, and a rehearsal fails of it."""


def trained_embedder(
    checkpoint: Checkpoint, input_size: int | None = None
) -> tuple[Embedder, Architecture, dict[str, Any]]:
    """The embedder of a run or an export, for images of any size that it takes.

    Args:
        checkpoint: what was found.
        input_size: side of its images in pixels; None is the one that it was validated at.
            Position embeddings are resampled for another one.

    Returns:
        Embedder, architecture, and the facts of `model.json`; without the score, which is of
        another size.

    Raises:
        UserError: when the network does not take images of that size.
    """
    architecture, facts = checkpoint.architecture, dict(checkpoint.facts)
    state = dict(checkpoint.state)
    if input_size in (None, architecture.input_size):
        embedder = rebuild_embedder(architecture)
    else:
        facts |= {"mAP": None, "validated_at": architecture.input_size}
        if embedding := facts.get("embedding"):  # whose view_sizes are of the run's own size
            facts["embedding"] = {**embedding, "view_sizes": ()}
        architecture = replace(architecture, input_size=input_size)
        try:
            embedder = rebuild_embedder(architecture)
            state = resized_state(state, embedder)
        except (UserError, RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{architecture.backbone} does not take images of {input_size} pixels "
                f"({first_line(error)}): name another --input_size"
            ) from error
    embedder.load_state_dict(state)
    return embedder, architecture, facts


def export_torchscript(
    embedder: Embedder, architecture: Architecture, facts: Mapping[str, Any], folder: Path
) -> Path:
    """Trace an embedder and write it with its description.

    An earlier export is not replaced before what was written has been loaded and answers as the
    embedder does. Killed at any time, the folder pairs the weights of no model with the description
    of another.

    Returns:
        The path of `model.pt`; `model.safetensors` and `model.json` lie beside it.

    Raises:
        UserError: when the written model cannot be loaded, or does not answer as the embedder does,
            and when another process is exporting into the folder.
    """
    from visual_search.common.locks import work_folder

    size = architecture.input_size
    embedder = embedder.eval().float().cpu()
    example = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of shapes that are fixed on purpose
        # What it answers is compared below, on other pixels: the tracer need not trace it twice.
        traced = torch.jit.trace(embedder, example, check_trace=False)
    with work_folder(folder / STAGED) as staged:
        # TorchScript's own writer ends the process where the disk is full.
        write_bytes(staged / MODEL_FILE, traced.save_to_buffer())
        save_weights(staged / WEIGHTS_FILE, embedder.state_dict())
        description = describe_model(
            architecture,
            {"rerank": [], **facts, "packages": architecture.packages},
        )
        write_json(staged / DESCRIPTION_FILE, description)
        _check_export(staged, embedder, architecture)
        _replace(folder, staged)
    return folder / MODEL_FILE


def _replace(folder: Path, by: Path) -> None:
    """Move a whole export into a folder in place of what is there.

    The description goes first and comes last: a folder without it holds no finished export.
    """
    for name in (DESCRIPTION_FILE, *RUNTIME_FILES):
        (folder / name).unlink(missing_ok=True)
    for name in (MODEL_FILE, WEIGHTS_FILE, DESCRIPTION_FILE):
        (by / name).replace(folder / name)


def _check_export(folder: Path, embedder: Embedder, architecture: Architecture) -> None:
    """Load an export as the ranker does, and run it in each precision that it may choose."""
    size = architecture.input_size
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        expected = embedder(pixels)

    def check(embed: EmbedFn, what: str) -> None:
        with torch.inference_mode():
            cosine = float((embed(pixels).float() * expected).sum(dim=1).min())
        if not cosine >= MIN_COSINE:
            raise UserError(
                f"the export of {architecture.backbone} does not answer as the model does "
                f"({what}: cosine {cosine:.4f}); it was not written"
            )

    try:
        check(load_torchscript(folder / MODEL_FILE), "TorchScript")
        model, _ = load_exported(folder, torch.device("cpu"))
        check(model, "rebuilt")
        check(converted(model, "fp32", memory_format_of(model, "fp32", False), pixels), "fp32")
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the export of {architecture.backbone} cannot be loaded again "
            f"({first_line(error)}); it was not written"
        ) from error
    for precision in ("bf16", "fp16"):
        try:
            with torch.inference_mode():
                converted(model, precision, "channels_last", pixels)(pixels)
        except Exception as error:  # the ranker falls back in the same way
            print(f"{precision} fails ({first_line(error)}): the ranker will take fp32 instead")


def load_exported(
    folder: Path, device: torch.device, shout: Shout = print, input_size: int = 0
) -> tuple[EmbedFn, Architecture]:
    """The user's own export, ready to embed images of `input_size` pixels (0: its own) on `device`.

    Its weights, from `model.safetensors` or, in an export of earlier versions, from `model.pt`, go
    into an eager model, which answers its first batch as fast as its hundredth. Where the library
    of its backbone is not installed, the TorchScript module itself is used, and `shout` is told.

    Raises:
        UserError: when something is missing or damaged; the message says what to run.
    """
    files = [path for path in (folder / WEIGHTS_FILE, folder / MODEL_FILE) if path.is_file()]
    if not files or not (folder / DESCRIPTION_FILE).is_file():
        raise UserError(
            f"there is no model in {folder}: {MODEL_FILE} and {DESCRIPTION_FILE} are made by "
            "`python my_submission/to_torchscript.py runs/<name>` from a trained run"
        )
    files = [path for path in files if not is_lfs_pointer(path)]
    if not files:
        raise UserError(f"{folder / MODEL_FILE} {POINTER}")
    checkpoint = load_checkpoint(files[0], trust=True)
    script = files[-1] if files[-1].name == MODEL_FILE else None
    return load_model(checkpoint, device, script, shout, input_size), checkpoint.architecture


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    script: Path | None = None,
    shout: Shout = print,
    input_size: int = 0,
) -> Callable[[Tensor], Tensor]:
    """The embedder of a checkpoint or export, ready to embed on `device`.

    Args:
        checkpoint: what was found.
        device: where it goes.
        script: a trusted TorchScript file of the same model, for where it cannot be built.
        shout: told of it then.
        input_size: side of the images in pixels; 0 is the model's own.

    Raises:
        UserError: when it cannot be built, and there is no `script` for that size.
    """
    model: nn.Module
    try:
        loader = model_loader(checkpoint)
        if loader is None:
            model, *_ = trained_embedder(checkpoint, input_size or None)
        else:
            model = loader(checkpoint, input_size)
    except (UserError, RuntimeError) as error:
        if script is None or input_size not in (0, checkpoint.architecture.input_size):
            raise
        packages = ", ".join(checkpoint.architecture.packages)
        shout(
            f"the model cannot be built here ({first_line(error)}), so the traced {script.name} "
            "runs in its place, slow to warm up and under autocast: requirements.txt has to bring "
            f"{packages}"
        )
        model = load_torchscript(script)
    return in_memory_format(model.eval().to(device), torch.channels_last)


def exported_steps(folder: Path) -> tuple[Step, ...]:
    """The re-ranking steps that `model.json` in `folder` names; none in an older export.

    Raises:
        UserError: naming file and key of what is no step.
    """
    path = folder / DESCRIPTION_FILE
    _, facts = read_description(path)
    return parse_steps(facts.get("rerank", []), f"{path}: rerank")


def embedding_settings(folder: Path, input_size: int = 0) -> EmbedSettings:
    """How the exported model's images are to be embedded: `embedding` in its description.

    Args:
        folder: of the export.
        input_size: side of its input in pixels; 0 is its own.

    Raises:
        UserError: when the description cannot be read, or says what there is not.
    """
    architecture, facts = read_description(folder / DESCRIPTION_FILE)
    where, own = str(folder / DESCRIPTION_FILE), architecture.input_size
    return EmbedSettings.parsed(facts.get("embedding") or {}, where).at(input_size or own, own)


def exported_runtime(
    folder: Path, settings: EmbedSettings, input_size: int, shout: Shout = print
) -> LoadRuntime | None:
    """The export for ONNX Runtime, where there is one that can be used at `input_size`.

    `shout` is told where there is one that cannot.

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
        from visual_search.ranking.onnx import load_onnx

        return partial(load_onnx, path)
    if settings.backend == "onnx":
        raise UserError(f"embedding.backend is onnx, but {missing}")
    if path.is_file():
        shout(f"{path} is not used, PyTorch runs the model: {missing}")
    return None
