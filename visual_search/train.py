"""Train one phase: photos and classes in, a run folder with the best embedder out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from visual_search.backbones import read_state_dict
from visual_search.checkpoint import load_checkpoint, save_checkpoint
from visual_search.config import DatasetConfig, PhaseConfig
from visual_search.datasets import LabelledImages, TrainingImages, joined, read_product10k
from visual_search.errors import UserError
from visual_search.evaluate import DevSet, Evaluation, evaluate_on_dev_set, read_dev_set
from visual_search.files import write_text
from visual_search.freezing import freeze_stages, hold_frozen
from visual_search.imprinting import imprint_centers
from visual_search.margins import SubCenterArcFace, class_margins
from visual_search.model import Architecture, Embedder, build_embedder
from visual_search.optim import build_optimizer, parameter_groups
from visual_search.progress import progress_bar
from visual_search.report import write_report
from visual_search.run_folder import RunFolder
from visual_search.transforms import build_augmentation

# Loss and learning rate go to metrics.jsonl every so many optimiser steps.
LOG_EVERY = 10


class Learner(nn.Module):
    """Embedder and classification head as one module, so that any parallel wrapper fits."""

    def __init__(self, embedder: Embedder, head: SubCenterArcFace, dropout: float) -> None:
        super().__init__()
        self.embedder, self.head, self.dropout = embedder, head, dropout

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of pixels `(N, 3, H, W)` uint8 and labels `(N,)`."""
        features = self.embedder.features(pixels)
        return self.head(F.dropout(features, self.dropout, self.training), labels)


@dataclass
class Phase:
    """The parts of a phase while it runs."""

    config: PhaseConfig
    run: RunFolder
    images: TrainingImages
    dev_set: DevSet
    learner: Learner
    architecture: Architecture
    head_continued: bool = False
    best: Evaluation | None = None


def train_phase(
    config: PhaseConfig, run: RunFolder, resolved: str, overwrite: bool = False
) -> float:
    """Train a phase into a run folder.

    Args:
        config: the phase.
        run: where it goes; nothing is touched there before data and weights are found good.
        resolved: the complete config as YAML, kept with the run.
        overwrite: replace a run of that name.

    Returns:
        The best mAP on the development set, 0..1.

    Raises:
        UserError: when data, weights or settings are not what they should be.
    """
    accelerator = Accelerator(
        mixed_precision=config.train.precision,
        gradient_accumulation_steps=config.train.accumulate,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(config.dataset.seed)
    if accelerator.is_main_process:
        run.check_free(overwrite)
    phase = _prepare(config, run, accelerator.is_main_process)
    if accelerator.is_main_process:
        run.start(resolved)
    if config.margin.imprint and not phase.head_continued:
        _imprint(phase, accelerator.device, accelerator.is_main_process)
    loader: Any = _loader(phase)
    per_epoch = -(-len(loader) // accelerator.num_processes // config.train.accumulate)
    groups = parameter_groups(
        phase.learner.embedder.backbone,
        [phase.learner.embedder.neck, phase.learner.head],
        config.optim.head_lr,
        config.optim.backbone_lr_ratio,
        config.optim.weight_decay,
    )
    optimizer, scheduler = build_optimizer(
        groups, config.optim.warmup_steps, per_epoch * config.train.epochs
    )
    learner: Any = torch.compile(phase.learner) if config.train.compile else phase.learner
    learner, optimizer, loader = accelerator.prepare(learner, optimizer, loader)
    step = 0
    for epoch in range(1, config.train.epochs + 1):
        phase.images.set_epoch(epoch)
        loader.set_epoch(epoch)
        step = _train_epoch(accelerator, phase, learner, optimizer, scheduler, loader, epoch, step)
        if epoch % config.train.validate_every == 0 or epoch == config.train.epochs:
            if accelerator.is_main_process:
                _validate(phase, accelerator.device, epoch, step)
            accelerator.wait_for_everyone()
    return _finish(phase) if accelerator.is_main_process else 0.0


def _train_epoch(
    accelerator: Accelerator,
    phase: Phase,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    loader: DataLoader,
    epoch: int,
    step: int,
) -> int:
    """One pass over the training photos; returns the number of optimiser steps so far."""
    config = phase.config
    learner.train()
    hold_frozen(phase.learner.embedder.backbone, config.backbone.freeze_batchnorm)
    watch = BrokenPhotos(phase.images, config.dataset.max_broken_share)
    started, running = time.perf_counter(), 0.0
    bar = progress_bar(
        f"{phase.run.name} epoch {epoch}/{config.train.epochs}",
        "batch",
        iterable=loader,
        shown=accelerator.is_main_process,
    )
    for pixels, labels, indexes, passed_over in bar:
        if config.train.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(learner):
            loss = learner(pixels, labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.optim.gradient_clip:
                accelerator.clip_grad_norm_(learner.parameters(), config.optim.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
        watch.see(indexes, passed_over)
        value = float(loss.detach())
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {value} in epoch {epoch}, step {step + 1}; lower "
                "optim.head_lr, or use train.precision no or bf16"
            )
        running = value if step == 0 and not running else 0.95 * running + 0.05 * value
        if not accelerator.sync_gradients:
            continue
        rates = _rates(optimizer)
        scheduler.step()
        step += 1
        bar.set_postfix(loss=f"{running:.3f}", lr=f"{rates['lr_head']:.1e}", refresh=False)
        if accelerator.is_main_process and step % LOG_EVERY == 1:
            phase.run.log(kind="step", step=step, epoch=epoch, loss=value, **rates)
    if accelerator.is_main_process:
        watch.write(phase.run.path / "broken_images.txt")
        seconds = time.perf_counter() - started
        images = len(loader) * config.dataset.batch_size
        phase.run.log(kind="epoch", epoch=epoch, step=step, seconds=seconds, images=images)
    return step


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    groups = {group["name"]: group["lr"] for group in optimizer.param_groups}
    return {f"lr_{name}": groups.get(name, 0.0) for name in ("head", "backbone")}


class BrokenPhotos:
    """Counts the training photos that could not be read, and stops the run when they are many."""

    def __init__(self, images: TrainingImages, max_share: float) -> None:
        self.images, self.max_share = images, max_share
        self.seen = 0
        self.broken: set[Path] = set()

    def see(self, indexes: Tensor, passed_over: Tensor) -> None:
        """Take note of a batch. Raises :class:`UserError` with examples above the limit."""
        self.seen += len(indexes)
        for i in passed_over.nonzero().flatten().tolist():
            self.broken.update(self.images.unreadable(int(indexes[i]), int(passed_over[i])))
        # A handful of broken photos at the start of a run says nothing about the share.
        if len(self.broken) > max(self.max_share * self.seen, 10):
            examples = ", ".join(str(path) for path in sorted(self.broken)[:3])
            raise UserError(
                f"{len(self.broken)} of {self.seen} training photos cannot be read, for example "
                f"{examples}; repair them, or raise dataset.max_broken_share"
            )

    def write(self, path: Path) -> None:
        """List them in a file and say so, where there are any."""
        if self.broken:
            write_text(path, "".join(f"{name}\n" for name in sorted(self.broken)))
            print(f"{len(self.broken)} unreadable training photos were replaced: see {path}")


def _prepare(config: PhaseConfig, run: RunFolder, chief: bool) -> Phase:
    dataset = config.dataset
    images = _training_images(dataset)
    dev = dataset.dev_set
    dev_set = read_dev_set(Path(dev.eval_root), dev.gallery, dev.queries)
    counts = images.counts(dataset.num_of_classes)
    margin = config.margin
    margins = class_margins(torch.from_numpy(counts), margin.low, margin.span, margin.power)
    embedder, architecture = _embedder(config)
    freeze_stages(embedder.backbone, config.backbone.frozen_stages)
    head = SubCenterArcFace(architecture.dimension, margins, margin.centers, margin.scale)
    continued = bool(config.pretrain_model) and _continue_head(
        head, Path(config.pretrain_model or ""), chief
    )
    if config.train.channels_last:
        embedder = embedder.to(memory_format=torch.channels_last)
    if chief:
        print(
            f"{run.name}: {len(images)} photos of {int((counts > 0).sum())} classes, "
            f"{config.backbone.name} at {dataset.input_size} px (validation "
            f"{architecture.input_size} px), {architecture.dimension}-d; "
            f"validation: {len(dev_set.queries)} queries, {len(dev_set.gallery)} gallery photos"
            + ("; trains on Product10K's test photos too" if dataset.train_on_test else ""),
            flush=True,
        )
    augment = build_augmentation(dataset.augmentations, dataset.input_size)
    training = TrainingImages(images, augment, dataset.input_size, dataset.seed)
    learner = Learner(embedder, head, margin.dropout)
    return Phase(config, run, training, dev_set, learner, architecture, continued)


def _imprint(phase: Phase, device: torch.device, chief: bool) -> None:
    """The same centres in every process: each embeds all photos."""
    learner, size = phase.learner.to(device), phase.config.dataset.input_size
    imprint_centers(
        learner.head, learner.embedder, phase.images.images, size, device=device, progress=chief
    )


def _training_images(dataset: DatasetConfig) -> LabelledImages:
    place = dataset.product10k
    root, classes = Path(place.train_valid_root), dataset.num_of_classes
    parts = [read_product10k(root, place.train_list, place.train_prefix, classes)]
    if dataset.train_on_test:
        parts.append(read_product10k(root, place.val_list, place.val_prefix, classes))
    images = joined(parts)
    if len(images) < dataset.batch_size:
        raise UserError(
            f"{root / place.train_list} lists {len(images)} photos, fewer than "
            f"dataset.batch_size = {dataset.batch_size}"
        )
    return images


def _embedder(config: PhaseConfig) -> tuple[Embedder, Architecture]:
    backbone = config.backbone
    embedder, architecture = build_embedder(
        backbone.name,
        "none" if config.pretrain_model else backbone.weights,
        config.dataset.input_size_valid or config.dataset.input_size,
        backbone.mean,
        backbone.std,
        config.neck.kind,
        config.neck.dimension,
        backbone.drop_path,
    )
    if config.pretrain_model:
        earlier = load_checkpoint(Path(config.pretrain_model))
        for part in ("backbone", "neck", "dimension"):
            theirs, ours = getattr(earlier.architecture, part), getattr(architecture, part)
            if theirs != ours:
                raise UserError(
                    f"pretrain_model {earlier.path} has {part} {theirs!r}, this phase {ours!r}"
                )
        embedder.load_state_dict(dict(earlier.state))
    return embedder, architecture


def _continue_head(head: SubCenterArcFace, source: Path, chief: bool) -> bool:
    """Take over the class centres of the phase before, where they are of the same classes."""
    places = [source / "best", source / "last", source, source.parent]
    files = [place / "head.safetensors" for place in places]
    found = next((path for path in files if path.is_file()), None)
    weight = read_state_dict(found).get("weight") if found else None
    fits = weight is not None and weight.shape == head.weight.shape
    if weight is not None and fits:
        head.weight.data.copy_(weight)
    if chief:
        print(f"class centres: {f'continued from {found}' if fits else 'new'}")
    return fits


def _loader(phase: Phase) -> DataLoader:
    workers = phase.config.dataset.num_workers
    return DataLoader(
        phase.images,
        batch_size=phase.config.dataset.batch_size,
        shuffle=True,
        drop_last=True,
        # Its own: else the draws of dropout would depend on how many workers there are.
        generator=torch.Generator().manual_seed(phase.config.dataset.seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _validate(phase: Phase, device: torch.device, epoch: int, step: int) -> None:
    embedder = phase.learner.embedder.eval()
    evaluation = evaluate_on_dev_set(
        embedder, phase.dev_set, phase.architecture.input_size, device=device
    )
    score = evaluation.mean_average_precision
    phase.run.log(kind="validation", epoch=epoch, step=step, mAP=score)
    facts = {
        "run": phase.run.name,
        "phase": "arcface",
        "epoch": epoch,
        "mAP": score,
        "trained_on_test": phase.config.dataset.train_on_test,
    }
    states = embedder.state_dict(), phase.learner.head.state_dict()
    save_checkpoint(phase.run.last, phase.architecture, *states, facts)
    is_best = phase.best is None or score > phase.best.mean_average_precision
    if is_best:
        phase.best = evaluation
        save_checkpoint(phase.run.best, phase.architecture, *states, facts)
    print(f"epoch {epoch}: mAP {score:.4f}{' (best so far)' if is_best else ''}", flush=True)


def _finish(phase: Phase) -> float:
    assert phase.best is not None  # the last epoch is always validated
    score = phase.best.mean_average_precision
    phase.run.plot()
    write_report(
        phase.run.path / "report.html",
        f"{phase.run.name}: mAP {score:.4f}",
        {
            "mAP": f"{score:.4f}",
            "backbone": phase.architecture.backbone,
            "input size": f"{phase.architecture.input_size} px",
            "training photos": str(len(phase.images)),
            "trained on Product10K's test photos": str(phase.config.dataset.train_on_test),
        },
        phase.dev_set,
        phase.best,
    )
    return score
