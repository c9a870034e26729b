"""The embedder as an ONNX network, for servers that run no PyTorch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visual_search.errors import UserError
from visual_search.files import written_atomically
from visual_search.inference import Answer
from visual_search.model import Embedder
from visual_search.quantization import quantized

ONNX_FILE = "model.onnx"
"""Where the ranker looks for it, beside `model.pt`."""
INPUT, OUTPUT = "pixels", "embeddings"


def export_onnx(
    embedder: Embedder,
    size: int,
    path: Path,
    precision: str = "fp32",
    calibration: Tensor | None = None,
) -> Path:
    """Write one ONNX file: `pixels` `(n, 3, size, size)`, uint8, to `embeddings`, unit vectors.

    Args:
        embedder: in any mode; it is exported as it embeds.
        size: side of the input in pixels.
        path: of the file.
        precision: fp32, fp16 (weights and activations; for devices that compute in it) or int8.
        calibration: for int8, `(n, 3, size, size)`, uint8, photos to measure activations on.

    Raises:
        UserError: when PyTorch cannot export the network.
        ModuleNotFoundError: without onnx, or onnxscript, which the exporter needs.
    """
    import onnx
    import onnxscript  # noqa: F401  so that what is missing is named

    network = _network(embedder.eval().float().cpu(), size)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        network = convert_float_to_float16(network, keep_io_types=True)
    elif precision == "int8":
        assert calibration is not None
        photos = [photo.numpy() for photo in calibration.split(1)]
        network = quantized(network, photos, lambda photo: {INPUT: photo})
    with written_atomically(path) as temporary:
        onnx.save(network, str(temporary))
    return path


def _network(embedder: Embedder, size: int) -> Any:
    example = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        # The exporter tells its steps on the terminal, and warns of its own libraries.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                embedder,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"pixels": {0: "photos"}},
            )
    except torch.onnx.OnnxExporterError as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"PyTorch cannot export this network to ONNX: {cause}") from error
    assert program is not None
    return program.model_proto


def load_onnx(path: Path, streams: int, threads: int) -> Answer:
    """Load a network into ONNX Runtime on this CPU.

    Args:
        path: of the file.
        streams: threads that will call it at the same time; one session serves all.
        threads: CPU threads for each of them.

    Raises:
        UserError: when the file is damaged.
        ModuleNotFoundError: without ONNX Runtime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own error types differ from release to release
        raise UserError(f"{path} cannot be used: {error}") from error
    return lambda pixels: torch.from_numpy(
        session.run([OUTPUT], {INPUT: pixels.contiguous().numpy()})[0]
    )
