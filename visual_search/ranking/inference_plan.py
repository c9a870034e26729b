"""How a trained model is run: precision, memory format, batch size, threads; batch norms folded.

Fixed rules (:func:`plan_inference`), and one check of what computes in less than fp32.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import math
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visual_search.common.errors import UserError, first_line
from visual_search.common.model_config import EmbedSettings
from visual_search.common.processes import available_cores
from visual_search.data.image_files import HANGING_SECONDS
from visual_search.data.images import ImageItem, load_pixels
from visual_search.model.embedder import Concatenation, Embedder
from visual_search.ranking.deadline import call_within

EmbedFn = Callable[[Tensor], Tensor]
"""uint8 pixels `(N, 3, H, W)` to unit vectors `(N, dimension)`."""
LoadRuntime = Callable[[int, int], EmbedFn]
"""The same model in ONNX Runtime, for so many threads that call it and CPU threads of each."""

Answer = TypeVar("Answer")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
# Convolutions gain from channels last (EfficientNet-B0 on a CPU: 77 -> 138 images/s), and
# transformers do not mind. Families that lose in fp32 on a CPU, by their class in timm:
CONTIGUOUS_FP32 = {"ConvNeXt"}
"""ConvNeXt-T: 16 -> 8 images/s in channels last."""
# A CPU core's caches hold the activations of few images; a GPU wants many at once.
CPU_BATCH, GPU_BATCH = 4, 64
# Images on which a precision or a runtime is compared with the model in fp32, and the smallest
# cosine between the embeddings at which it is taken.
CHECKED_IMAGES, MIN_COSINE = 4, 0.9999


@dataclass(frozen=True)
class InferencePlan:
    """A model ready to embed, and how to run it."""

    embed: EmbedFn
    """At the chosen precision."""
    exact: EmbedFn
    """In fp32, for what fails or is not finite otherwise."""
    device: torch.device
    precision: str
    memory_format: str
    batch_size: int
    streams: int
    """Threads that each read a batch; on a CPU each runs the model on it, too."""
    threads: int
    """CPU threads of the model in each stream."""
    backend: str = "torch"
    """What runs the model: torch or onnx."""
    only_size: int = 0
    """The one side in pixels that `embed` takes, other sides go to `exact`; 0: it takes all."""
    seconds: float = 0.0
    """What making and checking the plan took."""


def _first_pixels(items: Sequence[ImageItem], size: int, seconds: float) -> np.ndarray:
    """Of some images, `(n, 3, size, size)`, uint8; noise where they cannot be read in time."""

    def load() -> np.ndarray:
        return np.stack([load_pixels(item, size)[0] for item in items])

    try:
        return call_within(min(seconds, HANGING_SECONDS), load)
    except TimeoutError:
        shape = (len(items), 3, size, size)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def plan_inference(
    model: EmbedFn,
    items: Sequence[ImageItem],
    input_size: int,
    *,
    device: torch.device,
    settings: EmbedSettings | None = None,
    runtime: LoadRuntime | None = None,
    seconds: float = math.inf,
) -> InferencePlan:
    """Choose how to run a model; `settings` go before the rules.

    fp16 on a GPU, bf16 on a CPU that multiplies it in hardware, else fp32. What computes in less
    than fp32 must answer as fp32 does on a few images; where it does not, fails, or is not done
    in time, fp32 is taken. On a CPU each core runs the model on a batch of its own: no thread
    waits for another, and reading images needs no cores set apart.

    Args:
        model: in evaluation mode, on `device`.
        items: images of the kind that is to be embedded; the first few are looked at.
        input_size: side of the model's input in pixels.
        device: where the model is.
        settings: what is fixed by hand.
        runtime: the same model in ONNX Runtime, taken on a CPU where it answers alike.
        seconds: for the check at the most.

    Raises:
        UserError: when the settings ask for ONNX Runtime by name, and it fails.
    """
    started = time.perf_counter()
    settings = settings or EmbedSettings()
    on_gpu = device.type == "cuda"
    keep_freed_memory()
    cores = available_cores()
    streams = settings.workers or (cores + 2 if on_gpu else cores)
    threads = max(cores // streams, 1)
    loaded = _first_pixels(items[:CHECKED_IMAGES], input_size, seconds)
    pixels = torch.from_numpy(loaded).to(device)

    def in_time(call: Callable[[], Answer]) -> Answer:
        return call_within(seconds - (time.perf_counter() - started), call)

    def layout_for(precision: str) -> str:
        by_rule = settings.memory_format == "auto"
        return memory_format_of(model, precision, on_gpu) if by_rule else settings.memory_format

    def make(precision: str) -> EmbedFn:
        layout = layout_for(precision)
        return call_on(device, lambda: converted(model, precision, layout, pixels[:1]))

    def check(embed: EmbedFn, least: float) -> None:
        in_time(lambda: _check(embed, model, pixels, device, least))

    precision = settings.precision if settings.precision != "auto" else precision_for(device)
    try:
        embed = exact = in_time(lambda: make("fp32"))
    except Exception:  # as it comes; what it raises is raised where it embeds
        embed = exact = model
    if precision != "fp32":
        try:
            embed = in_time(lambda: make(precision))
            if settings.precision == "auto":
                check(embed, MIN_COSINE)
        except Exception as error:
            print(f"{precision} is left out ({first_line(error)}): the model runs in fp32")
            precision, embed = "fp32", exact
    backend = "torch"
    if runtime is not None and not on_gpu and settings.backend != "torch":
        try:
            answer = in_time(lambda: runtime(streams, threads))
            check(answer, settings.min_cosine)
            backend, embed = "onnx", answer
        except Exception as error:
            if settings.backend == "onnx":
                raise UserError(
                    f"embedding.backend is onnx, which fails here ({first_line(error)}): export "
                    "the model again, or set the backend to torch"
                ) from error
            print(f"onnx is left out ({first_line(error)}): PyTorch runs the model")
    return InferencePlan(
        embed,
        exact,
        device,
        precision,
        layout_for(precision),
        settings.batch_size or (GPU_BATCH if on_gpu else CPU_BATCH),
        streams,
        threads,
        backend,
        input_size if backend == "onnx" else 0,
        time.perf_counter() - started,
    )


def _check(
    embed: EmbedFn, model: EmbedFn, pixels: Tensor, device: torch.device, least: float
) -> None:
    """
    Raises:
        ValueError: where `embed` does not answer as `model` in fp32 does.
    """
    with torch.inference_mode():
        found, expected = call_on(device, lambda: (embed(pixels), model(pixels)))
    smallest = float(F.cosine_similarity(found.float(), expected.float()).min())
    if not smallest >= least:
        raise ValueError(
            f"its embeddings are not the model's: cosine {smallest:.4f}, below {least:g}"
        )


def precision_for(device: torch.device) -> str:
    """fp16 on a GPU, bf16 on a CPU that multiplies it in hardware, else fp32."""
    return "fp16" if device.type == "cuda" else "bf16" if bf16_is_native() else "fp32"


def bf16_is_native() -> bool:
    """Whether this CPU multiplies bfloat16 itself; elsewhere it is slower than fp32."""
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, flag, bool)() for flag in flags)


def memory_format_of(model: EmbedFn, precision: str, on_gpu: bool) -> str:
    """The faster memory format by the model's family: see :data:`CONTIGUOUS_FP32`."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    loses = not on_gpu and any(type(module).__name__ in CONTIGUOUS_FP32 for module in modules)
    return "contiguous" if loses and precision == "fp32" else "channels_last"


def call_on(device: torch.device, call: Callable[[], Answer]) -> Answer:
    """What `call` returns; on a GPU it runs in inference mode in the device's own thread.

    cuDNN and cuBLAS set up handles and plans for each thread that calls them, which takes seconds.
    """
    return _thread_of(device).submit(call).result() if device.type == "cuda" else call()


@functools.cache
def _thread_of(device: torch.device) -> ThreadPoolExecutor:
    def forever() -> None:
        torch.inference_mode().__enter__()

    return ThreadPoolExecutor(1, f"model on {device}", forever)


def converted(
    model: EmbedFn, precision: str, memory_format: str, example: Tensor | None = None
) -> EmbedFn:
    """The model in another precision and memory format; it is left as it is itself.

    Pixels are normalised and embeddings brought to unit length in fp32 either way. What is no
    :class:`Embedder`, such as TorchScript, runs under autocast. Copies share their weights with
    the model wherever these stay as they are.

    Args:
        model: in evaluation mode.
        precision: a key of :data:`PRECISIONS`.
        memory_format: a key of :data:`MEMORY_FORMATS`.
        example: an image or two `(N, 3, H, W)`, uint8, on the model's device; with it batch norms
            are folded into the convolutions in front of them, where the answer stays the same.
    """
    dtype, layout = PRECISIONS[precision], MEMORY_FORMATS[memory_format]
    half = dtype is not torch.float32
    if not isinstance(model, Embedder):

        def under_autocast(pixels: Tensor) -> Tensor:
            with torch.autocast(pixels.device.type, dtype if half else None, enabled=half):
                return model(pixels.contiguous(memory_format=layout))

        return under_autocast
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    sharing = copy.deepcopy(model, shared).eval()
    if example is not None:
        # Weights made in inference mode cannot be used by other threads.
        with torch.inference_mode(False), torch.no_grad():
            _fold_batch_norms(sharing, example)
    for part in sharing.modules():
        # Of an ensemble the members: it hands them pixels, and joins their unit vectors, in fp32.
        if isinstance(part, Embedder) and not isinstance(part.backbone, Concatenation):
            part.backbone.to(dtype)
            if half:
                part.backbone.register_forward_pre_hook(lambda _, given: (given[0].to(dtype),))
                part.neck.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    in_memory_format(sharing, layout)
    return lambda pixels: sharing(pixels.contiguous(memory_format=layout))


def in_memory_format(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The model with its weights in a layout of images; in place.

    `Module.to` would fail on weights of five dimensions (timm's lambda networks).
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=layout)
    return model


def _fold_batch_norms(model: nn.Module, example: Tensor) -> None:
    """Fold each batch norm that follows a convolution into it, in place, if the answer stays.

    EfficientNet-Lite0 takes a seventh less time, ResNet50 a twentieth (fp32, one CPU core).
    Which follow is seen by running the example: a batch norm's input *is* the output of one
    convolution. timm's norms carry the activation, which stays in their place.
    """
    pairs = _convolutions_before_norms(model, example)
    if not pairs:
        return
    before = model(example)
    places = {
        id(child): (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
    }
    kept = [(conv, conv.weight, conv.bias, norm) for conv, norm in pairs]
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        parent, name = places[id(norm)]
        setattr(parent, name, getattr(norm, "act", nn.Identity()))
    if not F.cosine_similarity(before, model(example)).min() >= MIN_COSINE:
        for conv, weight, bias, norm in kept:
            conv.weight, conv.bias = weight, bias
            parent, name = places[id(norm)]
            setattr(parent, name, norm)


def _convolutions_before_norms(
    model: nn.Module, example: Tensor
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_convolution(module: Any, _: Any, output: Tensor) -> None:
        made[id(output)] = (module, output)  # held, so that no other tensor gets its id

    def before_norm(module: Any, given: tuple[Tensor, ...]) -> None:
        if id(given[0]) in made:
            pairs.append((made[id(given[0])][0], module))

    hooks = [
        module.register_forward_hook(after_convolution)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks += [module.register_forward_pre_hook(before_norm) for module in norms]
    if norms:
        model(example)
    for hook in hooks:
        hook.remove()
    once = [conv for conv, _ in pairs]
    # A convolution or norm that is used twice, or has a list of its own, stays.
    return [pair for pair in pairs if sum(conv is pair[0] for conv in once) == 1]


def keep_freed_memory() -> bool:
    """Do not hand activations back to the system after each operation, on Linux with glibc.

    malloc gives large blocks back when they are freed, and a model asks for the same again a
    moment later: EfficientNet-Lite0 in two threads takes 148,000 page faults for 80 images
    without this, 12 with it, and a sixth more time. The process keeps its peak memory.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Of glibc's malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD; bytes.
    options = {-3: 1 << 30, -1: 1 << 30, -2: 64 << 20}
    return all(mallopt(option, value) for option, value in options.items())
