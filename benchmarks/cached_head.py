"""An epoch of neck and head on cached features, and what bounds it.

    python -m benchmarks.cached_head

100,000 rows of 1,280 features, a neck to 64 dimensions, ArcFace over 4,000 classes:
the trainer's own steps (loader, optimiser, clipping included), against the same in a plain loop
of PyTorch with pytorch-metric-learning's loss, and against the products alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from benchmarks.harness import (
    Row,
    arguments,
    lower_is_better,
    peer_module,
    processor,
    report,
)
from visual_search.config import MarginConfig, NeckConfig, OptimConfig, PhaseConfig, TrainConfig
from visual_search.dataset_config import DatasetConfig
from visual_search.datasets import LabelledImages, TrainingImages
from visual_search.errors import exit_with_sentence
from visual_search.feature_store import Features
from visual_search.frozen import FrozenFeatures, as_it_is
from visual_search.heads import MarginHead
from visual_search.learner import Learner, Objective
from visual_search.model import Embedder
from visual_search.necks import create_neck
from visual_search.optim import OptimizerState
from visual_search.phase import ImagePhase
from visual_search.samplers import build_batches
from visual_search.train import optimizer_step
from visual_search.transforms import Mixer

DIMENSION = 64
LIMIT = 15.0  # seconds an epoch


def main() -> None:
    """Time both and record."""
    options = build_parser().parse_args()
    torch.set_num_threads(options.threads)
    rows, width, classes = (2_000, 64, 100) if options.quick else (100_000, 1280, 4_000)
    features, labels = random_features(rows, width, classes)
    lines: list[Row] = []
    notes: list[str] = []
    for centers, nested in ((1, ()), (1, (8, 16, 32))):
        made = Ours(features, labels, classes, options.batch, centers, nested)
        seconds, of_cpu = made.epoch()
        case = f"{rows:,} x {width} to {DIMENSION}-d, {classes:,} classes, {centers} centre(s)"
        case += ", nested" if nested else ""
        lines.append(lower_is_better(f"{case}: epoch", seconds, "limit", LIMIT, "s"))
        busy = lower_is_better(f"{case}: CPU time of an epoch", of_cpu, "limit", LIMIT, "s")
        lines.append(busy)
        print(f"{case}: {seconds:.2f} s, {of_cpu:.2f} s of CPU", flush=True)
        if not nested:
            bound = products_alone(rows, width, classes, options.batch, centers)
            notes.append(
                f"{case}: {flops(rows, width, classes, centers) / 1e12:.2f} TFLOP; roofline: its "
                f"products alone take {bound:.2f} s, the epoch reaches {100 * bound / seconds:.0f} "
                f"% of that; loading its rows alone takes {made.loading():.2f} s"
            )
        if centers == 1 and not nested:
            peer, name = peer_epoch(features, labels, classes, options.batch)
            lines.append(lower_is_better(f"{case}: epoch", seconds, name, peer, "s"))
    notes.insert(
        0,
        f"{processor()}; {options.threads} thread(s), batch {options.batch}, fp32, torch "
        f"{torch.__version__}; one epoch each after warm-up steps; load of the machine at the end "
        f"{os.getloadavg()[0]:.1f}",
    )
    report("cached_head", lines, notes, options)


def build_parser() -> argparse.ArgumentParser:
    """What every benchmark can be told, and the batch."""
    parser = arguments("Time an epoch of neck and head on cached features.")
    parser.add_argument("--batch", type=int, default=256, help="rows a step")
    return parser


def random_features(rows: int, width: int, classes: int) -> tuple[Tensor, np.ndarray]:
    """Features round the centres of their classes, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=generator)
    features = torch.randn(rows, width, generator=generator).add_(centres[labels])
    return features.relu_(), labels.numpy()


class Ours:
    """The trainer's steps over features in memory."""

    def __init__(
        self,
        features: Tensor,
        labels: np.ndarray,
        classes: int,
        batch: int,
        centers: int,
        nested: tuple[int, ...],
    ) -> None:
        margin = MarginConfig(centers=centers, class_margins="none", dropout=0.0, nested=nested)
        config = PhaseConfig(
            dataset=replace(DatasetConfig(), batch_size=batch),
            neck=NeckConfig("norm-linear", DIMENSION),
            margin=margin,
            optim=OptimConfig(warmup_steps=0),
            train=TrainConfig(cache_features=True),
        )
        names = [Path(str(number)) for number in range(len(labels))]
        images = LabelledImages(names, labels)
        training = TrainingImages(images, lambda image: torch.zeros(0), 1, 0)
        frozen = FrozenFeatures(training)
        frozen.fill(Features(features, ("",) * len(features), 0))
        batches = build_batches("shuffle", images, batch, 0)
        self.loader: Any = DataLoader(frozen, batch_sampler=batches, collate_fn=as_it_is)
        neck = create_neck("norm-linear", features.shape[1], DIMENSION)
        embedder = Embedder(nn.Identity(), neck, (0.0,) * 3, (1.0,) * 3)
        head = MarginHead(DIMENSION, torch.from_numpy(images.counts(classes)), margin)
        objective = Objective(head, None, None, nested=nested)
        learner = Learner(embedder, objective, from_features=True).train()
        self.accelerator = Accelerator(cpu=True)
        self.optim = OptimizerState(self.accelerator, config, learner, len(self.loader))
        unused: Any = None  # nothing is validated here
        self.phase = ImagePhase(config, training, unused, learner, unused, Mixer("none"))
        self.learner = self.accelerator.prepare_model(learner)

    def epoch(self) -> tuple[float, float]:
        """Seconds of one after some steps that warm up: by the clock, and of all CPUs together.

        The second is hardly touched by what else the machine does.
        """
        self._steps(5)
        started, busy = time.perf_counter(), time.process_time()
        self._steps(len(self.loader))
        return time.perf_counter() - started, time.process_time() - busy

    def loading(self) -> float:
        """Seconds that the rows of an epoch take without the steps."""
        started = time.perf_counter()
        for _ in self.loader:
            pass
        return time.perf_counter() - started

    def _steps(self, count: int) -> None:
        for step, batch in enumerate(self.loader):
            if step == count:
                return
            self.optim.set_rates(step)
            self.phase.before_step(step, len(self.loader))
            optimizer_step(self.accelerator, self.phase, self.learner, self.optim, [batch])


def peer_epoch(features: Tensor, labels: np.ndarray, classes: int, batch: int) -> tuple[float, str]:
    """Seconds of an epoch as one would write it with PyTorch and a loss from the shelf."""
    library = peer_module("pytorch_metric_learning")
    losses = peer_module("pytorch_metric_learning.losses")
    loss = losses.ArcFaceLoss(classes, DIMENSION, margin=28.6, scale=30)
    neck = nn.Linear(features.shape[1], DIMENSION)
    parameters = [*neck.parameters(), *loss.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-4)
    data = torch.utils.data.TensorDataset(features, torch.from_numpy(labels))
    loader: Any = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)

    def steps(count: int) -> None:
        for step, (rows, wanted) in enumerate(loader):
            if step == count:
                return
            normal = nn.functional.normalize(rows, dim=1)
            loss(neck(normal), wanted).backward()
            clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            optimizer.zero_grad()

    steps(5)
    started = time.perf_counter()
    steps(len(loader))
    name = f"pytorch-metric-learning {library.__version__} {type(loss).__name__}, DataLoader"
    return time.perf_counter() - started, name


def flops(rows: int, width: int, classes: int, centers: int) -> float:
    """Of an epoch's products: the neck's two, the head's three."""
    neck = 2 * 2 * width * DIMENSION
    head = 3 * 2 * classes * centers * DIMENSION
    return float(rows) * (neck + head)


def products_alone(rows: int, width: int, classes: int, batch: int, centers: int) -> float:
    """Seconds that an epoch's products take, and nothing else."""
    features, gradient = torch.randn(batch, width), torch.randn(batch, DIMENSION)
    neck, weight = torch.randn(DIMENSION, width), torch.randn(classes * centers, DIMENSION)
    logits = torch.randn(classes * centers, batch)
    products: list[Callable[[], Tensor]] = [
        lambda: features @ neck.T,
        lambda: gradient.T @ features,
        lambda: torch.mm(weight, gradient.T, out=logits),
        lambda: logits.T @ weight,
        lambda: logits @ gradient,
    ]
    for product in products:
        product()
    started = time.perf_counter()
    steps = max(rows // batch // 4, 1)
    for _ in range(steps):
        for product in products:
            product()
    return (time.perf_counter() - started) * (rows // batch) / steps


if __name__ == "__main__":
    exit_with_sentence(main)
