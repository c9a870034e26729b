"""Train one phase: images and classes in, a run folder with the best embedder out."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    set_seed,
)
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from visual_search.common.environment import write_environment
from visual_search.common.errors import UserError
from visual_search.common.progress import progress_bar
from visual_search.common.run_folder import (
    RunFolder,
    load_state,
    newest_state,
    random_states,
    restore_random_states,
    save_state,
)
from visual_search.data.datasets import ReplacedImages
from visual_search.data.samplers import TrainingBatches
from visual_search.evaluation.identity import keep_identity
from visual_search.model.freezing import hold_frozen, hold_recomputed
from visual_search.optim import OptimizerState
from visual_search.phase import Batch, Phase
from visual_search.ranking.inference_plan import keep_freed_memory

if TYPE_CHECKING:
    from visual_search.config import PhaseConfig
    from visual_search.text.config import ClipConfig

# While one process validates, the others wait; a large gallery takes longer than the default.
LONGEST_WAIT = timedelta(hours=4)

OnValidation = Callable[[int, float], None]
"""Told the optimiser step and the mAP; may raise to end the run."""

Config = TypeVar("Config", bound="PhaseConfig | ClipConfig")


def train_phase(
    config: Config,
    kind: Callable[[Config, Accelerator], Phase],
    run: RunFolder,
    resolved: str,
    overwrite: bool = False,
    on_validation: OnValidation | None = None,
) -> float:
    """Train a phase into a run folder, or continue there where a killed run was.

    Args:
        config: of the phase.
        kind: of phase; it is built when the processes know each other and random numbers are
            seeded.
        run: where it goes; nothing is touched there before data and weights are found good.
        resolved: the complete config as YAML, kept with the run.
        overwrite: replace a run of that name.
        on_validation: called after each validation, in the first process.

    Returns:
        The best mAP on the development set, 0..1.

    Raises:
        UserError: when data, weights or settings are not what they should be, and when a run of
            that name is finished, was started with other settings or is being trained.
    """
    _check_launcher(os.environ)
    on_gpu = torch.cuda.is_available()
    if config.train.precision == "fp16" and not on_gpu:
        raise UserError("train.precision is fp16, which needs a GPU; on a CPU, write bf16 or no")
    # It keeps a process's first precision; the trials of a search may differ in theirs.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=config.train.precision,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=LONGEST_WAIT),
            # The memory of past embeddings is a buffer, and is equal everywhere already.
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )
    if config.train.sync_batchnorm and accelerator.num_processes > 1 and not on_gpu:
        raise UserError("train.sync_batchnorm works on GPUs alone; on CPUs, set it to false")
    set_seed(config.dataset.seed)
    keep_freed_memory()
    # All batches are of one shape: the fastest of a GPU's convolutions is looked for once.
    torch.backends.cudnn.benchmark = True
    is_main_process = accelerator.is_main_process
    if not overwrite and (score := run.killed_at_its_end(resolved)) is not None:
        accelerator.wait_for_everyone()  # all have looked before one removes
        if is_main_process:
            run.drop_states()
        return score
    run.check(resolved, overwrite)
    phase = kind(config, accelerator)
    batches = phase.batches()
    accelerator.wait_for_everyone()  # all have looked before one writes
    with run.lock() if is_main_process else nullcontext():
        if is_main_process:
            print(phase.describe(run.name), flush=True)
            if leaks := phase.data.leak_words():
                print(f"warning: {leaks}", flush=True)
            if not run.check(resolved, overwrite):
                run.start(resolved)
            keep_identity(run.path, phase.data, phase.images.images.class_names)
        with accelerator.main_process_first():  # the others read what the first one kept
            phase.fill_features()
        return Trainer(phase, run, batches, on_validation).train()


def _check_launcher(environment: Mapping[str, str]) -> None:
    """Refuse to train alone where `accelerate launch --cpu --num_processes N` asked for N.

    Without MPI it starts a single process for it, without a word: then it has said where the main
    process is, as it does for several alone, and given no rank.
    """
    ranked = any(name in environment for name in ("RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if environment.get("ACCELERATE_USE_CPU") and "MASTER_ADDR" in environment and not ranked:
        raise UserError(
            "accelerate launch --cpu started one process, not several: on CPUs, write "
            "torchrun --nproc_per_node 2 -m visual_search.main_arcface …"
        )


class Trainer:
    """The loop, and everything in it that changes from step to step."""

    def __init__(
        self,
        phase: Phase,
        run: RunFolder,
        batches: tuple[TrainingBatches, DataLoader],
        on_validation: OnValidation | None = None,
    ) -> None:
        self.accelerator, self.phase, self.run = phase.processes, phase, run
        self.config, self.on_validation = phase.config, on_validation
        self.is_main_process = self.accelerator.is_main_process
        self.batches, self.loader = batches
        per_epoch = -(-len(self.loader) // self.config.train.accumulate)
        self.total = per_epoch * self.config.train.epochs
        share = round(self.config.train.validate_share * per_epoch)
        self.validates_each = self.config.train.validate_steps or share
        """Optimiser steps; 0 after epochs alone."""
        self.epoch, self.batch, self.step = 1, 0, 0
        self.validated = self.stale = 0
        """Step of the last validation, and validations since the best one."""
        self.smoothed = 0.0
        self.seconds = 0.0
        """That earlier processes spent on this run."""
        self.started = self.saved = time.perf_counter()
        self.watch = ReplacedImages(phase.images, self.config.dataset.max_broken_share)
        state = newest_state(run.path / "state")
        if state is None:
            phase.start_weights()
        self._build()
        if state is not None:
            self._continue(state)
        elif self.is_main_process:
            run.cut_metrics(0)  # of a run that was killed before its first state

    def _build(self) -> None:
        """Optimiser, schedule, averages and what else moves while the model is trained."""
        train, device = self.config.train, self.accelerator.device
        learner = self.phase.learner.to(device)
        if train.sync_batchnorm:
            # torch's own would drop the activation that timm keeps in its batch norms.
            convert_sync_batchnorm(learner)
        hold_recomputed(learner)
        if train.compile:
            learner.compile_features()
        self.optim = OptimizerState(self.phase, self.total)
        self.trained = [p for p in learner.embedder.backbone.parameters() if p.requires_grad]
        self._set_backbone_frozen(self.epoch <= train.head_epochs)
        self.validator = self.phase.validator(self.phase, self.run, self.optim.average)
        if self.is_main_process:
            write_environment(self.run.path, device, self.accelerator.num_processes)

    def _set_backbone_frozen(self, frozen: bool) -> None:
        """Linear probe or fine-tuning; the processes' wrapper has to know which weights move."""
        for parameter in self.trained:
            parameter.requires_grad_(not frozen)
        self.backbone_frozen = frozen
        learner = self.phase.learner
        if self._own_names():
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                learner, self._own_names()
            )
        self.accelerator._models.clear()
        self.wrapped = self.accelerator.prepare_model(learner)
        self.trackers: list[Any] = []

    def train(self) -> float:
        """Run the epochs that are left; returns the best mAP."""
        train = self.config.train
        if self.is_main_process:
            if train.trackers:
                from visual_search.common.trackers import start_trackers

                resolved = yaml.safe_load((self.run.path / "config.yml").read_text("utf-8"))
                self.trackers = start_trackers(train.trackers, self.run.path, resolved, self.step)
            if self.step == 0:
                self.validator.validate_before_training()
        while self.epoch <= train.epochs:
            self._train_epoch()
            last = self.epoch == train.epochs
            if (last or self.epoch % train.validate_every == 0) and self.validated != self.step:
                self._validate()
            if last or self._is_stale():
                break
            self.epoch, self.batch = self.epoch + 1, 0
            self._save()
        return self._finish()

    def _train_epoch(self) -> None:
        """The rest of the current pass over the training images."""
        config, phase = self.config, self.phase
        phase.images.set_epoch(self.epoch)
        self.batches.set_epoch(self.epoch, self.batch)
        if self.backbone_frozen and self.epoch > config.train.head_epochs:
            self._set_backbone_frozen(False)
        self._set_mode()
        started, before = time.perf_counter(), self.batch
        title = f"{self.run.name} epoch {self.epoch}/{config.train.epochs}"
        shown = self.is_main_process
        bar = progress_bar(title, "batch", total=len(self.loader), initial=self.batch, shown=shown)
        with bar:
            loaded = iter(self.loader)
            while batches := list(itertools.islice(loaded, config.train.accumulate)):
                self._train_step(batches, bar)
                if self._is_stale():
                    break
        if self.is_main_process:
            self.watch.write(self.run.path / "broken_images.txt")
            seconds = time.perf_counter() - started
            together = config.dataset.batch_size * self.accelerator.num_processes
            images = (self.batch - before) * together
            facts = {"epoch": self.epoch, "step": self.step, "seconds": seconds, "images": images}
            self.run.log(kind="epoch", **facts)

    def _train_step(self, batches: Sequence[Batch], bar: Any) -> None:
        """One optimiser step and what is due after it."""
        train = self.config.train
        self.optim.set_rates(self.step)
        self.phase.before_step(self.step, self.total)
        loss = self._move(batches)
        self.step, self.batch = self.step + 1, self.batch + len(batches)
        if self.optim.average is not None:
            self.optim.average.update()
        for _, _, indexes, n_skipped in batches:
            self.watch.see(indexes, n_skipped)
        bar.update(len(batches))
        due = bool(train.save_steps) and self.step % train.save_steps == 0
        if (self.step - 1) % train.log_steps == 0:  # reading the loss waits for the device
            self._log(loss, bar)
            late = time.perf_counter() - self.saved > 60 * train.save_minutes
            due = due or bool(self._from_the_first([late])[0])
        if self.validates_each and self.step % self.validates_each == 0:
            self._validate()
            self._set_mode()
        if due:
            self._save()

    def _move(self, batches: Sequence[Batch]) -> Tensor:
        """Move the weights along the mean gradient of the batches; their mean loss, a scalar."""
        accelerator, losses = self.accelerator, []
        for number, batch in enumerate(batches, start=1):
            # Gradients travel between the processes once a step, with the last batch.
            closes = number == len(batches)
            with nullcontext() if closes else accelerator.no_sync(self.wrapped):
                loss = self.wrapped(*self.phase.inputs(batch))
                accelerator.backward(loss / len(batches))
            losses.append(loss.detach())
        self.optim.step()
        return torch.stack(losses).mean()

    def _set_mode(self) -> None:
        self.phase.learner.train()
        held = self.config.backbone.freeze_batchnorm or self.backbone_frozen
        hold_frozen(self.phase.learner.embedder.backbone, held)

    def _log(self, own_loss: Tensor, bar: Any) -> None:
        """Show and keep the mean loss of the processes; all of them have to call it.

        Raises:
            UserError: when it is not finite.
        """
        loss = float(self.accelerator.reduce(own_loss, "mean"))
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss}; lower optim.head_lr, or use train.precision no or bf16"
            )
        if not self.is_main_process:
            return
        rates = self.optim.learning_rates()
        self.smoothed = 0.7 * self.smoothed + 0.3 * loss if self.smoothed else loss
        rate = f"{rates['lr_head'] or rates['lr_backbone']:.1e}"  # pairs alone have no head
        bar.set_postfix(loss=f"{self.smoothed:.3f}", lr=rate, refresh=False)
        self.run.log(kind="step", step=self.step, epoch=self.epoch, loss=loss, **rates)
        self._track({"loss": loss, **rates})

    def _track(self, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(values, step=self.step)

    def _validate(self) -> None:
        head = self._head_state()
        told = [0.0, 0]
        if self.is_main_process:
            score = self.validator.validate(self.epoch, self.step, head)
            told = [score, self.validator.stale]
            self._track({"mAP": score})
            if self.on_validation is not None:
                self.on_validation(self.step, score)
        score, self.stale = self._from_the_first(told)
        self.validated = self.step
        self.optim.schedule.observe(score)

    def _is_stale(self) -> bool:
        limit = self.config.train.early_stopping
        return bool(limit) and self.stale >= limit

    def _from_the_first(self, values: list[Any]) -> list[Any]:
        """The first process's values, in all processes."""
        return broadcast_object_list(values) if self.accelerator.num_processes > 1 else values

    def _save(self) -> None:
        """Write down everything, so that a killed run continues from here."""
        state = self.phase.learner.state_dict()
        left_out = {*self._own_names(), *self._still_names()}
        common = {
            "position": [self.epoch, self.batch, self.step, self.validated, self.stale],
            "learner": {name: state[name] for name in state if name not in left_out},
            "moving": self.optim.state_dict(),
            "validator": self.validator.state_dict(),
            "watch": self.watch.state_dict(),
            "metrics_bytes": self.run.metrics_bytes() if self.is_main_process else 0,
            "seconds": self.seconds + time.perf_counter() - self.started,
        }
        own = {
            "random": random_states(),
            "learner": {name: state[name] for name in self._own_names()},
            "rows": self.optim.rows.state_dict() if self.optim.rows is not None else {},
        }
        save_state(self.run.path / "state", self.step, common, own, self.accelerator)
        self.saved = time.perf_counter()

    def _head_state(self) -> Mapping[str, Tensor]:
        """The head's tensors for a checkpoint; all processes call it: a sharded one is gathered."""
        head = self.phase.learner.head
        return {} if head is None else head.full_state()

    def _own_names(self) -> list[str]:
        """Tensors of the learner that differ between the processes."""
        head = self.phase.learner.head
        return [] if head is None else [f"head.{name}" for name in head.own_state_names()]

    def _still_names(self) -> list[str]:
        """Tensors of the learner that never change: those of a backbone that is not even run."""
        idle = self.phase.idle_part
        names = self.phase.learner.state_dict()
        return [name for name in names if idle and name.startswith(idle)]

    def _continue(self, place: Path) -> None:
        """Take up what :meth:`_save` wrote."""
        common, own = load_state(place, self.accelerator)
        learner = self.phase.learner
        self.epoch, self.batch, self.step, self.validated, self.stale = common["position"]
        learner.load_state_dict({**learner.state_dict(), **common["learner"], **own["learner"]})
        self.optim.load_state_dict(common["moving"])
        if self.optim.rows is not None:
            self.optim.rows.load_state_dict(own["rows"])
        self.validator.load_state_dict(common["validator"])
        self.watch.load_state_dict(common["watch"])
        self.seconds = common["seconds"]
        self._set_backbone_frozen(self.epoch <= self.config.train.head_epochs)
        if self.is_main_process:
            self.run.cut_metrics(common["metrics_bytes"])
            print(
                f"{self.run.name}: continues in epoch {self.epoch} after {self.step} steps",
                flush=True,
            )
        restore_random_states(own["random"])

    def _finish(self) -> float:
        head = self._head_state()
        score = 0.0
        if self.is_main_process:
            self.validator.finish(self.epoch, self.step, head)
            for tracker in self.trackers:
                tracker.finish()
            self.run.plot()
            best = self.validator.best
            score = best["mAP"]
            seconds = self.seconds + time.perf_counter() - self.started
            source = self.config.pretrain_model
            marks = {origin.source: origin.weights for origin in self.phase.data.origins}
            mark = marks[source] if source else None
            facts = {"pretrain_fingerprint": mark, "seconds": round(seconds, 1)}
            self.run.finish({**best, **facts})
        return float(self._from_the_first([score])[0])
