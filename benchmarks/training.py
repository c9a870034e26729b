"""How much of a device's speed a training step reaches, and what holds it back.

    python -m benchmarks.training --device cuda

Steps as the phases take them: sub-centre ArcFace over 9,700 classes, AdamW, gradient clipping,
bfloat16, channels-last and `torch.compile` on a GPU, photos decoded and augmented by worker
processes. Weights are random, which costs the same.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import (
    Row,
    alternating_medians,
    arguments,
    higher_is_better,
    lower_is_better,
    peak_resident,
    processor,
    report,
)
from visual_search.common.errors import UserError, run_command
from visual_search.common.model_config import BackboneConfig
from visual_search.config import OptimConfig, PhaseConfig
from visual_search.data.augment import build_augmentation
from visual_search.data.datasets import LabelledImages, TrainingImages
from visual_search.data.samplers import TrainingBatches, image_loader, shuffled
from visual_search.model.embedder import build_embedder
from visual_search.objective import Learner
from visual_search.optim import build_optimizer, parameter_groups

CLIP_MEAN, CLIP_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
WARM_BATCHES = 3
MEMORY_LIMIT = 40.0  # GB, of the smaller A100
NOMINAL_BF16 = {  # FLOP/s of dense bfloat16, makers' data sheets; the first name that fits
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


class Case(NamedTuple):
    """A model at the settings of a phase, and the side of the photos in pixels."""

    model: str
    size: int
    batch: int
    classes: int = 9700

    def __str__(self) -> str:
        return f"{self.model.rpartition('/')[2]}, {self.size} px, batch {self.batch}"


CASES = {
    "cuda": [
        Case("open_clip/convnext_xxlarge", 224, 48),
        Case("open_clip/convnext_xxlarge", 256, 32),
        Case("open_clip/ViT-L-14", 224, 48),
        Case("open_clip/ViT-L-14", 224, 32),
    ],
    "cpu": [Case("timm/tf_efficientnet_lite0", 128, 16), Case("timm/convnext_atto", 128, 16)],
}
QUICK = [Case("timm/test_convnext", 64, 4, 20)]


class Trainer:
    """Everything a step needs, without a loop round it; on a GPU in bfloat16 and compiled."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device, self.on_gpu = case, device, device.type == "cuda"
        torch.manual_seed(0)
        with device:  # there random weights are drawn at once
            embedder, architecture = build_embedder(
                BackboneConfig(case.model, "none", CLIP_MEAN, CLIP_STD), case.size
            )
        counts = torch.ones(case.classes, dtype=torch.int64)
        learner = Learner(embedder, architecture.dimension, PhaseConfig(), counts)
        assert learner.head is not None
        self.learner = learner.to(device).to(memory_format=torch.channels_last).train()
        groups = parameter_groups(embedder.backbone, [embedder.neck, learner.head], OptimConfig())
        self.optimizer = build_optimizer(OptimConfig(), groups)
        self.parameters = [p for group in groups for p in group["params"]]
        pixels = torch.randint(0, 256, (case.batch, 3, case.size, case.size), dtype=torch.uint8)
        self.batch = self.moved(pixels, torch.randint(0, case.classes, (case.batch,)))
        # Of forward and backward of one batch, uncompiled; recomputation would not count. The
        # backward pass of a product is two products of its size. Torch's counter is asked for the
        # forward pass alone: behind grouped convolutions it counts the backward pass as if they
        # had no groups.
        with FlopCounterMode(display=False) as counter:
            self._loss(*self.batch)
        self.flops = 3 * int(counter.get_total_flops())
        if self.on_gpu:
            self.learner.compile_features()

    def moved(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same on the device, channels last."""
        on_device = pixels.to(self.device, non_blocking=True)
        last = on_device.contiguous(memory_format=torch.channels_last)
        return last, labels.to(self.device, non_blocking=True)

    def step(self, pixels: Tensor, labels: Tensor) -> None:
        """Forward, backward, clip, update."""
        self._loss(pixels, labels).backward()
        clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
            loss: Tensor = self.learner(pixels, labels, labels)
        return loss


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest_product(device: torch.device, repeats: int) -> float:
    """FLOP/s of one large product of matrices: what can be had at all."""
    side, times, dtype = 2048, 1, torch.float32
    if device.type == "cuda":
        side, times, dtype = 8192, 10, torch.bfloat16
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            a @ b
        wait_for(device)

    (seconds,) = alternating_medians([products], repeats)
    return 2 * side**3 * times / seconds


def make_photos(folder: Path, count: int = 32, side: int = 1000) -> list[Path]:
    """JPEGs of `side` x `side` pixels and about 130 KB, as catalogues have them."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(paths[-1], quality=80)
    return paths


def loader_of(case: Case, photos: list[Path], batches: int, workers: int) -> DataLoader:
    """Batches as a phase reads them."""
    paths = list(islice(cycle(photos), batches * case.batch))
    labels = np.arange(len(paths), dtype=np.int64) % case.classes
    augment = build_augmentation("autoaugment", case.size)
    images = TrainingImages(LabelledImages(paths, labels), augment, case.size, seed=0)
    chosen = TrainingBatches(shuffled(images.images), case.batch, seed=0)
    return image_loader(images, chosen, seed=0, workers=workers)


def rate_over(
    batches: Iterable[list[Tensor]], use: Callable[[list[Tensor]], None], device: torch.device
) -> float:
    """Photos/s after the first :data:`WARM_BATCHES`, when workers and caches are warm."""
    seen, start = 0, 0.0
    for number, batch in enumerate(batches):
        use(batch)
        if number == WARM_BATCHES - 1:
            wait_for(device)
            start = time.perf_counter()
        elif number >= WARM_BATCHES:
            seen += len(batch[0])
    wait_for(device)
    return seen / (time.perf_counter() - start)


def measure(case: Case, photos: list[Path], options: Namespace) -> tuple[list[Row], str]:
    """All rates of one model, and what they mean."""
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(case, device)

    def step() -> None:
        trainer.step(*trainer.batch)
        wait_for(device)

    def train(batch: list[Tensor]) -> None:
        trainer.step(*trainer.moved(batch[0], batch[1]))

    (seconds,) = alternating_medians([step], options.repeats, warm_up=3)
    model = case.batch / seconds
    print(f"{case}: model alone {model:.1f} images/s", file=sys.stderr)
    loading = case, photos, WARM_BATCHES + options.batches, options.workers
    decode = rate_over(loader_of(*loading), lambda batch: None, device)
    print(f"{case}: decode alone {decode:.1f} images/s", file=sys.stderr)
    whole = rate_over(loader_of(*loading), train, device)
    memory = torch.cuda.max_memory_reserved(device) if on_gpu else peak_resident()
    of_photo = trainer.flops / case.batch
    measured = fastest_product(device, options.repeats)
    card = torch.cuda.get_device_name(device) if on_gpu else ""
    nominal = next((peak for name, peak in NOMINAL_BF16.items() if name in card), None)
    source = "data sheet" if nominal else "large product, measured"
    ideal = f"{'bf16' if on_gpu else 'fp32'} peak ({source})", (nominal or measured) / of_photo
    # Workers decode on cores of their own beside a GPU; on a CPU both take turns.
    bound = min(decode, model) if on_gpu else 1 / (1 / decode + 1 / model)
    limit: tuple[str, float | None] = ("limit", MEMORY_LIMIT) if on_gpu else ("none", None)
    rows = [
        higher_is_better(f"{case}: model alone", model, *ideal, "images/s"),
        higher_is_better(f"{case}: decode alone", decode, "none", None, "images/s"),
        higher_is_better(f"{case}: whole", whole, "bound by the two", bound, "images/s"),
        lower_is_better(f"{case}: peak memory", memory / 1e9, *limit, "GB"),
    ]
    slower = "decoding" if decode < model else "the model"
    speed = model * of_photo
    of_nominal = f", {speed / nominal:.0%} of the data sheet's" if nominal else ""
    return rows, (
        f"{case}: {of_photo / 1e9:.1f} GFLOP a photo, {speed / 1e12:.3g} TFLOP/s in the model, "
        f"{speed / measured:.0%} of a large product's {measured / 1e12:.3g}{of_nominal}; "
        f"roofline: {bound:.0f} images/s; the bottleneck is {slower}"
    )


def parsed_options() -> Namespace:
    """The command line, with what depends on the device filled in.

    Raises:
        UserError: for a device that is not there.
    """
    parser = arguments("Images/s, memory and share of the device's peak of training steps.")
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="trains on it")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA GPU here; write --device cpu")
    options.batches = 40 if on_gpu else 4
    options.workers = min(8, os.cpu_count() or 1)
    if options.quick:
        options.batches, options.workers, options.repeats = 1, 0, 1
    return options


def main() -> None:
    """Measure, print, record."""
    options = parsed_options()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True  # as a phase has it
    cases = QUICK if options.quick else CASES[options.device]
    rows: list[Row] = []
    notes = [
        f"{processor()}; {options.threads} threads, {options.workers} decoding processes, "
        f"torch {torch.__version__}; medians of {options.repeats}"
    ]
    if options.device == "cuda":
        notes.append(f"{torch.cuda.get_device_name()}; compiled")
    with TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), 4 if options.quick else 32)
        size = sum(path.stat().st_size for path in photos) / len(photos)
        notes.append(f"photos: JPEG, 1000 x 1000 pixels, {size / 1e3:.0f} KB")
        for case in cases:
            of_case, note = measure(case, photos, options)
            rows += of_case
            notes.append(note)
            # After each: a device may be lent for minutes, and what was measured stays.
            report(f"training-{options.device}", rows, notes, options)


if __name__ == "__main__":
    run_command(main)
