"""What moves beside the weights while they are trained: optimiser, rates, average of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from visual_search.averaging import ExponentialAverage
from visual_search.clip_config import ClipConfig
from visual_search.config import PhaseConfig
from visual_search.dual_encoder import ClipLearner
from visual_search.freezing import layer_depths
from visual_search.learner import Learner
from visual_search.optim import build_optimizer, build_row_optimizer, parameter_groups
from visual_search.sampled_classes import SampledMarginHead
from visual_search.schedules import Schedule


class MovingParts:
    """Built once for a run; what each holds is part of the state that a run continues from."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: PhaseConfig | ClipConfig,
        learner: Learner | ClipLearner,
        total_steps: int,
    ) -> None:
        """
        Args:
            accelerator: precision and processes.
            config: of the phase.
            learner: on its device; what of its backbone is frozen now never moves.
            total_steps: optimiser steps of the whole run.
        """
        self.accelerator, self.config, self.total = accelerator, config, total_steps
        optim, backbone, head = config.optim, learner.embedder.backbone, learner.head
        sampled = isinstance(head, SampledMarginHead)
        others = [learner.embedder.neck, None if sampled else head, learner.pairs]
        groups = parameter_groups(
            backbone,
            [part for part in others if part is not None],
            optim.head_lr,
            optim.backbone_lr_ratio,
            optim.weight_decay,
            layer_decay=optim.layer_decay,
            depths=layer_depths(backbone) if optim.layer_decay != 1.0 else None,
        )
        self.optimizer: Any = accelerator.prepare_optimizer(
            build_optimizer(optim.name, groups, momentum=optim.momentum, betas=optim.betas)
        )
        self.rows = (
            build_row_optimizer(
                optim.name,
                head.table,
                optim.head_lr,
                momentum=optim.momentum,
                betas=optim.betas,
                weight_decay=optim.weight_decay,
            )
            if isinstance(head, SampledMarginHead)
            else None
        )
        self.schedule = Schedule(
            self.optimizer,
            optim.schedule,
            total_steps,
            warmup_steps=optim.warmup_steps,
            floor=optim.floor,
            milestones=optim.milestones,
            gamma=optim.gamma,
            patience=optim.patience,
            cycles=optim.cycles,
        )
        decay = config.train.ema_decay
        self.average = ExponentialAverage(learner.embedder, decay) if decay else None

    def before_step(self, step: int, learner: Learner | ClipLearner) -> None:
        """Set the rates, and how far the margin has grown, for optimiser step `step` (0-based)."""
        self.schedule.apply(step)
        if self.rows is not None:
            self.rows.lr = self.config.optim.head_lr * self.schedule.factor(step)
        if learner.head is not None and isinstance(self.config, PhaseConfig):
            grown = max(self.config.margin.grow_share * self.total, 1.0)
            learner.head.set_progress(min(step / grown, 1.0))

    def after_step(self, learner: Learner | ClipLearner) -> None:
        """Let the average follow the weights."""
        if self.average is not None:
            self.average.update(learner.embedder)

    def learning_rates(self) -> dict[str, float]:
        """The highest rate among the groups of head and of backbone."""
        rates = {"lr_head": self.rows.lr if self.rows is not None else 0.0, "lr_backbone": 0.0}
        for group in self.optimizer.param_groups:
            key = "lr_backbone" if group["name"].startswith("backbone") else "lr_head"
            rates[key] = max(rates[key], group["lr"])
        return rates

    def state_dict(self) -> dict[str, Any]:
        """What all processes share; the state of `rows` is each one's own."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "average": self.average.state_dict() if self.average is not None else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
