"""The embedder through OpenVINO: a file beside `model.pt`, for CPUs on which it is faster."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from visual_search.errors import UserError
from visual_search.inference import MIN_COSINE, Answer
from visual_search.model import Embedder
from visual_search.quantization import quantized
from visual_search.signal_stack import signal_stack_kept

OPENVINO_FILE = "model.xml"
OPENVINO_FILES = (OPENVINO_FILE, "model.bin")
"""The network and its weights."""
# Weights of 11 bits: on noise, which a network knows least of, it may differ by this much.
MIN_COSINE_FP16 = 0.995


def export_openvino(
    embedder: Embedder,
    size: int,
    folder: Path,
    precision: str = "fp32",
    calibration: Tensor | None = None,
) -> Path:
    """Write `model.xml` and `model.bin`; converting takes longer than a ranker may wait.

    Args:
        embedder: what was exported as TorchScript.
        size: side of the input in pixels; other sizes are refused later.
        folder: of the export; it is created.
        precision: fp32, fp16 (weights of half the size) or int8 (weights and activations).
        calibration: for int8, `(n, 3, size, size)`, uint8, photos to measure activations on.

    Raises:
        UserError: when the converted model does not answer as the embedder does; for int8, that
            is left to whoever measures it.
    """
    import openvino

    folder.mkdir(parents=True, exist_ok=True)
    embedder = embedder.eval().float().cpu()
    example = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        converted = openvino.convert_model(
            embedder, example_input=example, input=[-1, 3, size, size]
        )
    if precision == "int8":
        assert calibration is not None
        converted = quantized(converted, [photo.numpy() for photo in calibration.split(1)])
    path = folder / OPENVINO_FILE
    path.unlink(missing_ok=True)  # never an old network over new weights
    with TemporaryDirectory(dir=folder) as temporary:
        written = Path(temporary) / OPENVINO_FILE
        openvino.save_model(converted, written, compress_to_fp16=precision == "fp16")
        written.with_suffix(".bin").replace(path.with_suffix(".bin"))
        written.replace(path)
    if precision == "int8":
        return path
    # In fp32, since it is the conversion that is in question here.
    answer = load_openvino(folder, streams=1, threads=1, exact=True)
    with torch.inference_mode():
        cosine = float((answer(example) * embedder(example)).sum(dim=1).min())
    if not cosine >= (MIN_COSINE if precision == "fp32" else MIN_COSINE_FP16):
        path.unlink()
        raise UserError(
            f"the OpenVINO export does not answer as the model does (cosine {cosine:.4f}); it was "
            "not kept"
        )
    return path


def load_openvino(folder: Path, streams: int, threads: int, exact: bool = False) -> Answer:
    """Compile an export for this CPU.

    Args:
        folder: holds `model.xml` and `model.bin`.
        streams: threads that will call it at the same time.
        threads: CPU threads for each of them.
        exact: compute in fp32; else in what OpenVINO holds fastest, such as bf16.

    Raises:
        UserError: when the files are damaged.
        ModuleNotFoundError: without OpenVINO.
    """
    options: dict[str, int | str] = {
        "INFERENCE_NUM_THREADS": streams * threads,
        "NUM_STREAMS": streams,
    }
    if exact:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        with signal_stack_kept():
            compiled = _core().compile_model(folder / OPENVINO_FILE, "CPU", options)
    except RuntimeError as error:
        raise UserError(f"{folder / OPENVINO_FILE} cannot be used: {error}") from error
    own = threading.local()

    def answer(pixels: Tensor) -> Tensor:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer({0: pixels.contiguous().numpy()})
        # The request writes its next answer into the same memory.
        return torch.from_numpy(own.request.get_output_tensor(0).data.copy())

    return answer


@functools.cache
def _core() -> Any:
    """One for the process: each has a CPU plugin of its own, which takes time to make."""
    import openvino

    return openvino.Core()
