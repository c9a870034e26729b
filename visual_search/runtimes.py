"""A model in the formats of other runtimes: written, compared with the model, timed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from visual_search.cores import available_cores
from visual_search.errors import UserError
from visual_search.inference import Answer, converted
from visual_search.model import Embedder
from visual_search.onnx_model import ONNX_FILE, export_onnx, load_onnx
from visual_search.openvino_model import (
    OPENVINO_FILES,
    export_openvino,
    load_openvino,
)
from visual_search.probing import bf16_is_native
from visual_search.side_by_side import side_by_side

CPU = torch.device("cpu")
BATCH, ROUNDS = 4, 5
EXACT = " in fp32"
"""Behind the name of a format whose runtime would rather compute in bf16."""


@dataclass(frozen=True)
class Format:
    """A way to write a network."""

    write: Callable[[Embedder, int, Path, Tensor], Path]
    """Embedder, pixels, folder of all formats, calibration photos; returns the file."""
    load: Callable[[Path, int, int], Answer]
    """File, streams and CPU threads of each, to what answers."""
    load_exact: Callable[[Path, int, int], Answer] | None = None
    """The same in fp32 throughout, where the runtime may compute in less."""


@dataclass(frozen=True)
class Measured:
    """What a format is worth."""

    name: str
    megabytes: float
    smallest_cosine: float
    """To the model in fp32, over the photos it is compared on."""
    mean_cosine: float
    photos_a_second: float
    """Of the model alone, on all cores."""


def _onnx(precision: str) -> Format:
    def write(embedder: Embedder, size: int, folder: Path, photos: Tensor) -> Path:
        path = folder / f"model_{precision}.onnx"
        return export_onnx(embedder, size, path, precision, photos)

    return Format(write, load_onnx)


def _openvino(precision: str) -> Format:
    def write(embedder: Embedder, size: int, folder: Path, photos: Tensor) -> Path:
        return export_openvino(embedder, size, folder / f"openvino_{precision}", precision, photos)

    def load(path: Path, streams: int, threads: int, exact: bool = False) -> Answer:
        return load_openvino(path.parent, streams, threads, exact)

    return Format(write, load, partial(load, exact=True) if bf16_is_native() else None)


def measure(
    name: str, answer: Answer, embedder: Embedder, photos: Tensor, files: Sequence[Path]
) -> Measured:
    """Compare and time.

    Args:
        name: of the format.
        answer: the network as its runtime has it, for as many streams as there are cores.
        embedder: the model, in fp32.
        photos: `(n, 3, size, size)`, uint8, real ones that it was not calibrated on.
        files: what the format takes on disk.
    """
    with torch.inference_mode():
        pairs = [(answer(part), embedder(part)) for part in photos.split(BATCH)]
        cosines = torch.cat(
            [torch.nn.functional.cosine_similarity(got, wanted) for got, wanted in pairs]
        )
    cores = available_cores()
    batch = photos.repeat(-(-BATCH // len(photos)), 1, 1, 1)[:BATCH]
    rates = []
    for _ in range(ROUNDS):
        seconds = side_by_side(partial(answer, batch), cores, 1, CPU)
        rates.append(cores * BATCH / seconds)
    return Measured(
        name,
        sum(file.stat().st_size for file in files) / 1e6,
        float(cosines.min()),
        float(cosines.mean()),
        max(rates),
    )


def in_torch(embedder: Embedder, photos: Tensor, files: Sequence[Path]) -> list[Measured]:
    """The model itself as the ranker runs it: fp32, and bf16 where the CPU computes in it."""
    kinds = ["fp32", *(["bf16"] if bf16_is_native() else [])]
    return [
        measure(
            f"torch-{kind}",
            converted(embedder, kind, "channels_last", photos[:2]),
            embedder,
            photos,
            files,
        )
        for kind in kinds
    ]


def files_of(path: Path) -> list[Path]:
    """All files of a written format."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def best_for_ranker(measured: Sequence[Measured], min_cosine: float) -> str | None:
    """The fastest format of another runtime that answers as the model does; None if there is none.

    Args:
        measured: on this CPU.
        min_cosine: to the model, on every photo.
    """
    fit = [
        row
        for row in measured
        if row.name.startswith(("openvino-", "onnx-")) and row.smallest_cosine >= min_cosine
    ]
    best = max(fit, key=lambda row: row.photos_a_second, default=None)
    return None if best is None else best.name.removesuffix(EXACT)


def place_for_ranker(written: Mapping[str, Path], name: str | None, folder: Path) -> None:
    """Put a network where the ranker looks for it, and take away what was there.

    Args:
        written: files by format.
        name: of the format.
        folder: of the export.
    """
    for file in (*OPENVINO_FILES, ONNX_FILE):  # never an old network over new weights
        (folder / file).unlink(missing_ok=True)
    if name is None:
        return
    if name.startswith("onnx-"):
        shutil.copyfile(written[name], folder / ONNX_FILE)
        return
    for file in reversed(OPENVINO_FILES):
        shutil.copyfile(written[name].with_name(file), folder / file)


def write_formats(
    names: Sequence[str], embedder: Embedder, size: int, folder: Path, photos: Tensor
) -> tuple[dict[str, Path], list[Measured]]:
    """Write, compare and time each format.

    Args:
        names: keys of :data:`FORMATS`.
        embedder: the model, in evaluation mode.
        size: side of its input in pixels.
        folder: where they go.
        photos: `(n, 3, size, size)`, uint8: the first half calibrates, the second compares.

    Raises:
        UserError: for an unknown format.
    """
    for name in names:
        if name not in FORMATS:
            raise UserError(f"there is no format {name!r}; known: {', '.join(FORMATS)}")
    calibration, held_out = photos.chunk(2)
    written, measured = {}, in_torch(embedder, held_out, [folder / "model.pt"])
    for name in names:
        started = time.perf_counter()
        path = FORMATS[name].write(embedder, size, folder, calibration)
        answer = FORMATS[name].load(path, available_cores(), 1)
        written[name] = path
        measured.append(measure(name, answer, embedder, held_out, files_of(path)))
        exact = FORMATS[name].load_exact
        if exact is not None:
            answer = exact(path, available_cores(), 1)
            row = measure(f"{name}{EXACT}", answer, embedder, held_out, files_of(path))
            measured.append(row)
        print(f"{name}: {path}, {time.perf_counter() - started:.0f} s", flush=True)
    return written, measured


FORMATS: dict[str, Format] = {
    "onnx-fp32": _onnx("fp32"),
    "onnx-fp16": _onnx("fp16"),
    "onnx-int8": _onnx("int8"),
    "openvino-fp32": _openvino("fp32"),
    "openvino-fp16": _openvino("fp16"),
    "openvino-int8": _openvino("int8"),
}
"""Formats by name."""


def markdown(measured: Sequence[Measured]) -> str:
    """The formats as a table, with the speed beside the first one's."""
    lines = [
        "| format | MB | smallest cosine | mean cosine | photos/s | |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in measured:
        ratio = row.photos_a_second / measured[0].photos_a_second
        lines.append(
            f"| {row.name} | {row.megabytes:.1f} | {row.smallest_cosine:.5f} "
            f"| {row.mean_cosine:.5f} | {row.photos_a_second:.0f} | {ratio:.2f} x |"
        )
    return "\n".join(lines) + "\n"
