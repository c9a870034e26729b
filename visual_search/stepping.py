"""One optimiser step over one or more batches, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from visual_search.clip_phase import ClipPhase
from visual_search.errors import UserError
from visual_search.moving import MovingParts
from visual_search.phase import Batch, Phase


class Stepper:
    """Takes optimiser steps; knows about precision, accumulation, clipping and processes."""

    def __init__(
        self,
        accelerator: Accelerator,
        phase: Phase | ClipPhase,
        learner: Any,
        moving: MovingParts,
    ) -> None:
        """
        Args:
            accelerator: precision and processes.
            phase: its configuration and parts.
            learner: the phase's learner as the accelerator prepared it.
            moving: the optimisers.
        """
        self.accelerator, self.phase, self.learner = accelerator, phase, learner
        self.optimizer, self.rows = moving.optimizer, moving.rows

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """One optimiser step over `batches`; returns their mean loss, a scalar on the device."""
        losses = []
        for number, batch in enumerate(batches, start=1):
            # Gradients travel between the processes once a step, with the last batch.
            closes = number == len(batches)
            with nullcontext() if closes else self.accelerator.no_sync(self.learner):
                loss, _ = self.learner(*self.phase.inputs(batch, self.accelerator.device))
                self.accelerator.backward(loss / len(batches))
            losses.append(loss.detach())
        self._unscale_rows()
        self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.rows is not None:
            if not getattr(self.optimizer, "step_was_skipped", False):  # fp16 overflowed
                self.rows.step()
            self.rows.zero_grad()
        return torch.stack(losses).mean()

    def mean_over_processes(self, loss: Tensor) -> float:
        """A loss of :meth:`step` as a number; all processes have to call it.

        Raises:
            UserError: when it is not finite.
        """
        value = float(self.accelerator.reduce(loss, "mean"))
        if not math.isfinite(value):
            raise UserError(
                f"the loss became {value}; lower optim.head_lr, or use train.precision no or bf16"
            )
        return value

    def _unscale_rows(self) -> None:
        scaler = self.accelerator.scaler
        if self.rows is not None and scaler is not None and scaler.is_enabled():
            self.rows.scale_grad_(1.0 / scaler.get_scale())

    def _clip(self) -> None:
        """Shorten the whole gradient, the sampled class matrix's included, to the limit."""
        limit = self.phase.config.optim.gradient_clip
        if not limit:
            return
        self.accelerator.unscale_gradients()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.rows is not None:
            norm = torch.sqrt(norm.square() + self.rows.grad_norm_squared().to(norm))
            self.rows.scale_grad_(torch.clamp(limit / (norm + 1e-6), max=1.0))
        clip_grads_with_norm_(parameters, limit, norm)
