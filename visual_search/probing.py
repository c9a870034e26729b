"""Choosing precision, memory format and batch size by measuring the real model on real photos."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from visual_search.allocator import keep_freed_memory
from visual_search.device_lane import lane_of
from visual_search.embed_settings import EmbedSettings
from visual_search.errors import UserError, first_line
from visual_search.inference import (
    MEMORY_FORMATS,
    MIN_COSINE,
    Answer,
    converted,
)
from visual_search.side_by_side import side_by_side
from visual_search.torch_compiled import torch_compiled

# A CPU core's caches hold the activations of few photos; a GPU wants many at once.
CPU_BATCHES = (4, 2, 8, 16)
GPU_BATCHES = (32, 64, 128)
# The measurement may take this share of the time that the photos will take, about.
PROBE_SHARE = 0.02
# So few photos are embedded sooner than measured.
FEW_PHOTOS = 64
# A job under this many seconds ends before another runtime is compiled and faster.
LONG_SECONDS = 60.0
# Another runtime may take this share of the job's time to compile the model.
COMPILE_SHARE = 0.1
# A candidate must be this much faster than the best so far: less is noise.
GAIN = 1.03


@dataclass(frozen=True)
class Prepared:
    """A model ready to embed, and how to run it."""

    answer: Answer
    """At the chosen precision."""
    exact: Answer
    """In fp32, for rows that are not finite otherwise."""
    device: torch.device
    precision: str
    memory_format: str
    batch_size: int
    streams: int
    """Threads that each read a batch and run the model on it."""
    threads: int
    """CPU threads of the model in each stream."""
    decoder: str = "cpu"
    """cpu or nvjpeg."""
    backend: str = "torch"
    """What runs the model: torch, compile, openvino or onnx."""
    only_size: int = 0
    """The one side in pixels that `answer` takes, other sides go to `exact`; 0: it takes all."""
    rates: dict[str, float] = field(default_factory=dict)
    """Photos a second that were measured, decoding left out."""
    seconds: float = 0.0
    """What the preparation took."""


def bf16_is_native() -> bool:
    """Whether this CPU computes in bfloat16 itself; where it does not, it is not worth a try."""
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, flag, bool)() for flag in flags)


def prepare(
    model: Answer,
    pixels: Tensor,
    photos: int,
    *,
    device: torch.device,
    cores: int,
    settings: EmbedSettings | None = None,
    compiled: Compiled | None = None,
    seconds: float = float("inf"),
) -> Prepared:
    """Choose how to run a model, measuring what the settings leave open.

    On a CPU each core runs the model on a batch of its own: no thread waits for another, and
    reading photos needs no cores set apart. On a GPU the same threads read photos, and one after
    the other is given the device.

    Args:
        model: in evaluation mode, on `device`.
        pixels: a few real photos `(n, 3, size, size)`, uint8; they are repeated to fill a batch.
        photos: how many are to be embedded; for a few, nothing is measured.
        device: where the model is.
        cores: CPU cores to use.
        settings: what is fixed by hand.
        compiled: the same model for another runtime; tried where it can pay, on a CPU.
        seconds: never measure for longer than this.

    Raises:
        UserError: when the settings ask for a backend by name, and it fails.
    """
    started = time.perf_counter()
    settings = settings or EmbedSettings()
    on_gpu = device.type == "cuda"
    keep_freed_memory()
    streams = settings.workers or (cores + 2 if on_gpu else cores)
    threads = max(cores // streams, 1)
    probe = _Probe(model, pixels.to(device), streams, threads, device)
    probe.deadline = started + min(seconds, 1e9)
    variants = _variants(settings, on_gpu)
    batch = settings.batch_size or (GPU_BATCHES if on_gpu else CPU_BATCHES)[0]
    try:
        variants = probe.faithful(variants, batch)
        best = variants[0]
        measured = len(variants) > 1 or not settings.batch_size
        if measured and photos >= FEW_PHOTOS and photos > streams * batch:
            best = probe.best_variant(variants, batch, photos)
            if not settings.batch_size:
                batch = probe.best_batch(best, GPU_BATCHES if on_gpu else CPU_BATCHES, photos)
    except TimeoutError:  # a large model, or little time: no measurement can pay
        best = probe.fastest or variants[-1]
    if on_gpu:
        torch.cuda.synchronize(device)
    answer = probe.answer(best)
    exact = answer if best[0] == "fp32" else converted(model, "fp32", best[1])
    backend, other = "torch", None
    if settings.backend == "compile":
        backend, other = "compile", torch_compiled(answer, probe.batch(batch), threads, device)
    elif compiled is not None and not on_gpu and settings.backend in ("auto", compiled.name):
        other = _in_other_runtime(probe, compiled, best, batch, photos, settings)
        backend = "torch" if other is None else compiled.name
    return Prepared(
        answer=other or answer,
        exact=exact,
        backend=backend,
        only_size=0 if other is None else pixels.shape[-1],
        device=device,
        precision=best[0],
        memory_format=best[1],
        batch_size=batch,
        streams=streams,
        threads=threads,
        rates=probe.rates,
        seconds=time.perf_counter() - started,
    )


Variant = tuple[str, str]
"""Precision and memory format."""


@dataclass(frozen=True)
class Compiled:
    """The model for another runtime on this CPU."""

    name: str
    """As the settings call it: openvino or onnx."""
    load: Callable[[int, int, bool], Answer]
    """For so many streams of so many CPU threads each, and whether in fp32 throughout."""
    coarse: bool = True
    """Whether it computes in less than fp32, such as bf16, unless it is told otherwise."""


def _in_other_runtime(
    probe: _Probe,
    compiled: Compiled,
    best: Variant,
    batch: int,
    photos: int,
    settings: EmbedSettings,
) -> Answer | None:
    """The model in the other runtime, where that is faster or asked for by name.

    A ranker must not be lost to a runtime that it could do without: where the choice is open,
    whatever goes wrong is told in one line.
    """
    forced = settings.backend == compiled.name
    try:
        return probe.better_compiled(compiled, best, batch, photos, settings.min_cosine, forced)
    except Exception as error:
        late = isinstance(error, TimeoutError)
        reason = "there is no time to measure it" if late else first_line(error)
        if forced:
            raise UserError(
                f"embedding.backend is {compiled.name}, which fails here ({reason}): export the "
                "model again, or set the backend to torch"
            ) from error
        print(f"{compiled.name} is left out ({reason}): PyTorch runs the model")
        return None


def _variants(settings: EmbedSettings, on_gpu: bool) -> list[Variant]:
    """What there is to try, the likeliest first."""
    fast = ["fp16"] if on_gpu else ["bf16"] if bf16_is_native() else []
    precisions = [*fast, "fp32"] if settings.precision == "auto" else [settings.precision]
    layouts = list(MEMORY_FORMATS) if settings.memory_format == "auto" else [settings.memory_format]
    return [(precision, layout) for precision in precisions for layout in layouts]


class _Probe:
    """Measures variants as they are going to run: in all streams at once."""

    def __init__(
        self, model: Answer, pixels: Tensor, streams: int, threads: int, device: torch.device
    ) -> None:
        self._model, self._pixels, self._device = model, pixels, device
        self._streams, self._threads = streams, threads
        self._answers: dict[Variant, Answer] = {}
        self._started = time.perf_counter()
        self.deadline = float("inf")
        self.fastest: Variant | None = None
        self.rates: dict[str, float] = {}

    def answer(self, variant: Variant) -> Answer:
        if variant not in self._answers:
            convert = partial(converted, self._model, *variant, self._pixels[:1])
            on_gpu = self._device.type == "cuda"
            self._answers[variant] = lane_of(self._device).run(convert) if on_gpu else convert()
        return self._answers[variant]

    def _wait(self) -> float:
        return max(self.deadline - time.perf_counter(), 0.0)

    def _late(self) -> bool:
        return time.perf_counter() > self.deadline

    def faithful(self, variants: list[Variant], batch: int) -> list[Variant]:
        """The variants whose precision answers as fp32 does, if there is a choice."""
        precisions = list(dict.fromkeys(precision for precision, _ in variants))
        if len(precisions) == 1:
            return variants
        kept = [
            name
            for name in precisions
            if name == "fp32" or self._is_faithful(name, variants, batch)
        ]
        return [variant for variant in variants if variant[0] in kept]

    def _is_faithful(
        self, precision: str, variants: list[Variant], batch: int, least: float = MIN_COSINE
    ) -> bool:
        answer = self.answer(next(variant for variant in variants if variant[0] == precision))
        cosines: list[float] = []

        def compare() -> None:
            # A batch as it will come, for which plans have to be made anyway; fp32 one by one,
            # since more could be more than the memory holds.
            singles = self._pixels[:4].split(1)
            try:
                answers = answer(self.batch(batch))
            except torch.OutOfMemoryError:
                answers = torch.cat([answer(one) for one in singles])
            for mine, one in zip(answers, singles, strict=False):
                cosines.append(float((mine * self._model(one)[0]).sum()))

        side_by_side(compare, 1, self._threads, self._device, self._wait())
        return min(cosines) >= least

    def best_variant(self, variants: list[Variant], batch: int, photos: int) -> Variant:
        """The fastest, as far as the time goes."""
        best_rate = self._better_of_two(variants[0], batch)
        self.fastest = variants[0]
        if best_rate:
            # From the start: folding batch norms and the first calls took their time already.
            self.deadline = min(self.deadline, self._started + PROBE_SHARE * photos / best_rate)
        for variant in variants[1:]:
            if self._late():
                break
            rate = self._better_of_two(variant, batch)
            if rate > GAIN * best_rate:
                self.fastest, best_rate = variant, rate
        return self.fastest

    def _better_of_two(self, variant: Variant, batch: int) -> float:
        """The first call pays for what the second finds ready; either may be disturbed.

        0 where the device's memory is too small for the batch.
        """
        try:
            return max(self.rate(variant, batch), self.rate(variant, batch))
        except torch.OutOfMemoryError:
            return 0.0

    def best_batch(self, variant: Variant, sizes: tuple[int, ...], photos: int) -> int:
        best, best_rate = sizes[0], self.rates.get(_name(variant, sizes[0]), 0.0)
        for size in sizes[1:]:
            if self._late() or size * self._streams > photos:
                break
            try:
                rate = self.rate(variant, size)
            except torch.OutOfMemoryError:
                break
            if rate > GAIN * best_rate:
                best, best_rate = size, rate
        return best

    def better_compiled(
        self,
        compiled: Compiled,
        best: Variant,
        batch: int,
        photos: int,
        least: float,
        forced: bool,
    ) -> Answer | None:
        """The model of another runtime, if it is faster by what compiling it took, or `forced`.

        None too where its embeddings are farther from the model's than the cosine `least`.
        """
        rate = self.rates.get(_name(best, batch))
        if not forced and (rate is None or photos / rate < LONG_SECONDS or self._late()):
            return None
        patience = float("inf") if forced or rate is None else COMPILE_SHARE * photos / rate
        started = time.perf_counter()
        # As the runtime likes it best, such as in bf16; in fp32 where that is too coarse.
        for exact in (False, True) if compiled.coarse else (False,):
            variant = (f"{compiled.name}{' in fp32' if exact else ''}", "contiguous")
            before = time.perf_counter()
            load = partial(self._load, variant, compiled, exact)
            side_by_side(load, 1, 0, self._device, patience)
            spent = time.perf_counter() - started
            self.deadline = float("inf") if forced else self.deadline + time.perf_counter() - before
            if self._is_faithful(variant[0], [variant], batch, least):
                break
        else:
            below = f"a cosine below embedding.min_cosine {least:g}"
            print(f"{compiled.name} is left out: it answers otherwise than the model, {below}")
            return None
        other = self._better_of_two(variant, batch)
        pays = rate is None or photos / other + spent < photos / rate
        return self._answers[variant] if forced or pays else None

    def _load(self, variant: Variant, compiled: Compiled, exact: bool) -> None:
        self._answers[variant] = compiled.load(self._streams, self._threads, exact)

    def batch(self, count: int) -> Tensor:
        """So many photos, repeated where there are not enough."""
        repeats = -(-count // len(self._pixels))
        return self._pixels.repeat(repeats, 1, 1, 1)[:count]

    def rate(self, variant: Variant, batch: int) -> float:
        """Photos a second of all streams together."""
        answer = self.answer(variant)
        streams = 1 if self._device.type == "cuda" else self._streams
        call = partial(answer, self.batch(batch))
        seconds = side_by_side(call, streams, self._threads, self._device, self._wait())
        rate = streams * batch / seconds
        name = _name(variant, batch)
        self.rates[name] = max(rate, self.rates.get(name, 0.0))
        return rate


def _name(variant: Variant, batch: int) -> str:
    return f"{variant[0]}, {variant[1]}, batch {batch}"
