"""The embedder as an ONNX network: written, loaded, compared with the model and timed."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from visual_search.common.errors import UserError, first_line
from visual_search.common.files import written_atomically
from visual_search.common.processes import available_cores
from visual_search.model.embedder import Embedder
from visual_search.ranking.inference_plan import CPU_BATCH, EmbedFn

INPUT, OUTPUT = "pixels", "embeddings"
ROUNDS = 5


def export_onnx(embedder: Embedder, size: int, path: Path, precision: str = "fp32") -> Path:
    """Write one ONNX file: `pixels` `(n, 3, size, size)`, uint8, to `embeddings`, unit vectors.

    Args:
        embedder: in any mode; it is exported as it embeds.
        size: side of the input in pixels.
        path: of the file.
        precision: fp32, or fp16 (weights and activations; for devices that compute in it).

    Raises:
        UserError: when PyTorch cannot export the network.
        ModuleNotFoundError: without onnx, or onnxscript, which the exporter needs.
    """
    import onnx
    import onnxscript  # noqa: F401  so that what is missing is named

    embedder = embedder.eval().float().cpu()
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
                dynamic_shapes={"pixels": {0: "images"}},
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"PyTorch cannot export this network to ONNX: {first_line(error)}"
        ) from error
    assert program is not None
    network = program.model_proto
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        network = convert_float_to_float16(network, keep_io_types=True)
    with written_atomically(path) as temporary:
        onnx.save(network, str(temporary))
    return path


def load_onnx(path: Path, streams: int, threads: int) -> EmbedFn:
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


@dataclass(frozen=True)
class Measured:
    """What a format is worth."""

    name: str
    megabytes: float
    smallest_cosine: float
    """To the model in fp32, of the images it is compared on."""
    images_per_second: float
    """Of the model alone, on all cores."""


def measure(name: str, embed: EmbedFn, embedder: Embedder, images: Tensor, file: Path) -> Measured:
    """Compare with the model, and time: one thread a core, each with batches of its own.

    Args:
        name: of the format.
        embed: the network as its runtime has it.
        embedder: the model, in fp32.
        images: `(n, 3, size, size)`, uint8, real ones.
        file: of the format.
    """
    with torch.inference_mode():
        pairs = [(embed(part), embedder(part)) for part in images.split(CPU_BATCH)]
        cosines = torch.cat(
            [torch.nn.functional.cosine_similarity(got, wanted) for got, wanted in pairs]
        )
    cores = available_cores()
    batch = images.repeat(-(-CPU_BATCH // len(images)), 1, 1, 1)[:CPU_BATCH]

    def run(_: int) -> None:
        with torch.inference_mode():
            embed(batch)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rates = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            list(pool.map(run, range(cores)))
            rates.append(cores * CPU_BATCH / (time.perf_counter() - started))
    torch.set_num_threads(threads)
    megabytes = file.stat().st_size / 1e6
    return Measured(name, megabytes, float(cosines.min()), max(rates))
