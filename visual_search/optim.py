"""Optimiser, learning-rate schedule and moving average of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from visual_search.common.errors import UserError
from visual_search.config import OptimConfig
from visual_search.model.averaging import ExponentialAverage
from visual_search.model.freezing import layer_depths

if TYPE_CHECKING:
    from visual_search.phase import Phase


class OptimizerState:
    """Optimiser, schedule and moving average of a run; what each holds is saved with the run."""

    def __init__(self, phase: Phase, total_steps: int) -> None:
        """
        Args:
            phase: its learner on its device; what of the backbone is frozen now is never trained.
            total_steps: optimiser steps of the whole run.
        """
        self.accelerator, self.config, learner = phase.processes, phase.config, phase.learner
        optim, backbone, head = self.config.optim, learner.embedder.backbone, learner.head
        others = [learner.embedder.neck, head, learner.pairs]
        groups = parameter_groups(backbone, [part for part in others if part is not None], optim)
        self.optimizer: Any = self.accelerator.prepare_optimizer(build_optimizer(optim, groups))
        self.rows = None if head is None else head.row_optimizer(optim)
        """Of the sampled class matrix, where there is one."""
        self.schedule = Schedule(self.optimizer, optim, total_steps)
        decay = self.config.train.ema_decay
        self.average = ExponentialAverage(learner.embedder, decay) if decay else None

    def set_rates(self, step: int) -> None:
        """Set the learning rates for optimiser step `step`, from 0."""
        self.schedule.apply(step)
        if self.rows is not None:
            self.rows.lr = self.config.optim.head_lr * self.schedule.factor(step)

    def step(self) -> None:
        """Move the weights along their gradients, clipped, and drop these."""
        rows, scaler = self.rows, self.accelerator.scaler
        if rows is not None and scaler is not None and scaler.is_enabled():
            rows.scale_grad_(1.0 / scaler.get_scale())
        if self.config.optim.gradient_clip:
            self._clip_gradients(self.config.optim.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if rows is not None:
            if not getattr(self.optimizer, "step_was_skipped", False):  # fp16 overflowed
                rows.step()
            rows.zero_grad()

    def _clip_gradients(self, limit: float) -> None:
        """Shorten the whole gradient, the sampled class matrix's included, to the limit."""
        self.accelerator.unscale_gradients()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.rows is not None:
            norm = torch.sqrt(norm.square() + self.rows.grad_norm_squared().to(norm))
            self.rows.scale_grad_(torch.clamp(limit / (norm + 1e-6), max=1.0))
        clip_grads_with_norm_(parameters, limit, norm)

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


def parameter_groups(
    backbone: nn.Module, others: Iterable[nn.Module], optim: OptimConfig
) -> list[dict[str, Any]]:
    """Groups for an optimiser: the backbone at a fraction of the head's rate.

    Biases, the scales of normalisation layers and all other 1-D tensors have no weight decay.
    Frozen parameters (`requires_grad` false) are left out, so a backbone that is to be unfrozen
    later is frozen after this call. A layer of the backbone has
    `layer_decay ** (deepest - depth)` of the backbone's rate (Clark et al., "ELECTRA", ICLR 2020,
    appendix B).

    Args:
        backbone: its parameters are named after its own `named_parameters()`.
        others: neck, head and losses.
        optim: rates and weight decay.

    Returns:
        Groups with `name`, `params`, `lr`, `weight_decay`, and `peak_lr`, from which a schedule
        computes `lr`. Names are `backbone` (with layer decay: its deepest layer),
        `backbone_layer<depth>` and `head`, each with `_no_decay` behind it for the second kind.

    Raises:
        UserError: for layer decay of a backbone whose layers are not known.
    """
    decay, backbone_lr = optim.layer_decay, optim.head_lr * optim.backbone_lr_ratio
    depths = layer_depths(backbone) if decay != 1.0 else {}
    deepest = max(depths.values(), default=0)
    chosen: dict[tuple[str, bool], list[nn.Parameter]] = {}
    rates: dict[str, float] = {"backbone": backbone_lr, "head": optim.head_lr}
    for name, parameter, decayed in _trainable([backbone]):
        above = deepest - depths.get(name, deepest)
        group = f"backbone_layer{depths[name]}" if above else "backbone"
        rates[group] = backbone_lr * decay**above
        chosen.setdefault((group, decayed), []).append(parameter)
    seen = {parameter for parameters in chosen.values() for parameter in parameters}
    for _, parameter, decayed in _trainable(others):
        if parameter not in seen:
            chosen.setdefault(("head", decayed), []).append(parameter)
    return [
        {
            "name": group if decayed else f"{group}_no_decay",
            "params": parameters,
            "lr": rates[group],
            "peak_lr": rates[group],
            "weight_decay": optim.weight_decay if decayed else 0.0,
        }
        for (group, decayed), parameters in chosen.items()
    ]


def _trainable(modules: Iterable[nn.Module]) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Name, parameter, and whether weight decay applies; a shared parameter comes once."""
    seen = set()
    for root in modules:
        for prefix, module in root.named_modules():
            is_norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and parameter not in seen:
                    seen.add(parameter)
                    decayed = parameter.ndim > 1 and name != "bias" and not is_norm
                    yield f"{prefix}.{name}" if prefix else name, parameter, decayed


def build_optimizer(optim: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser `optim.name` over groups of :func:`parameter_groups`.

    Weight decay is decoupled from the gradient (Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization", ICLR 2019), except in adam and sgd, where it is part of the gradient. A
    momentum of sgd above 0 is Nesterov's; adan has three betas of its own.

    Raises:
        UserError: when there is nothing to train.
    """
    import timm.optim

    betas: dict[str, Any] = {"betas": optim.betas}
    # One kernel over all parameters on a GPU: each is read once a step; torch's choice else.
    fused: dict[str, Any] = {"fused": True if torch.cuda.is_available() else None}
    nesterov = {"momentum": optim.momentum, "nesterov": optim.momentum > 0}
    makers: dict[str, tuple[Any, dict[str, Any]]] = {
        "adamw": (torch.optim.AdamW, betas | fused),
        "adam": (torch.optim.Adam, betas | fused),
        "sgd": (torch.optim.SGD, nesterov | fused),
        "radam": (torch.optim.RAdam, betas | {"decoupled_weight_decay": True}),
        "nadam": (torch.optim.NAdam, betas | {"decoupled_weight_decay": True}),
        "lion": (timm.optim.Lion, betas),
        "adan": (timm.optim.Adan, {}),
        # The training loop clips the gradient; Lamb's own clipping would do it a second time.
        "lamb": (timm.optim.Lamb, betas | {"max_grad_norm": None, "decoupled_decay": True}),
    }
    if not groups:
        raise UserError(
            "nothing is left to train: unfreeze some of the backbone "
            "(backbone.trainable_blocks, backbone.frozen_stages) or give the head a weight"
        )
    maker, settings = makers[optim.name]
    return maker(groups, **settings)


class Schedule:
    """Learning rates: at each optimiser step, a share of each group's own peak rate.

    The share is never above 1 and, after the warm-up, never below `floor`. As both are shares of
    the group's own peak, a floor cannot lift the small rate of a backbone. Nothing here depends
    on the number of processes.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, optim: OptimConfig, total_steps: int
    ) -> None:
        """
        Args:
            optimizer: its groups have `peak_lr`, or the rate they come with is their peak.
            optim: shape of the schedule. The warm-up is cut to a tenth of the run, so that a
                small run on a large run's config still reaches its peak.
            total_steps: optimiser steps of the whole run.
        """
        self.optimizer, self.optim, self.total_steps = optimizer, optim, total_steps
        self.warmup = min(optim.warmup_steps, max(total_steps // 10, 1))
        self.milestones = [self._progress(round(m * total_steps)) for m in optim.milestones]
        self.best, self.stale, self.cuts = -math.inf, 0, 0
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])
        self.apply(0)

    def factor(self, step: int) -> float:
        """The share of the peak rate, 0..1, at optimiser step `step` (0-based)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        shaped = self._shape(min(self._progress(step), 1.0)) * self.optim.gamma**self.cuts
        return max(shaped, self.optim.floor)

    def _shape(self, progress: float) -> float:
        """The share of the peak at a share of the way behind the warm-up, both 0..1."""
        optim = self.optim
        if optim.schedule == "cosine":
            # Loshchilov and Hutter, "SGDR" (ICLR 2017), equation 5.
            return optim.floor + (1.0 - optim.floor) * (0.5 * (1.0 + math.cos(math.pi * progress)))
        if optim.schedule == "step":
            return optim.gamma ** sum(progress >= milestone for milestone in self.milestones)
        if optim.schedule == "cyclic":
            # Smith, "Cyclical Learning Rates" (WACV 2017), figure 2: the warm-up is the rising
            # side of the first triangle, and the last ends at 0.
            triangle = abs(1.0 - 2.0 * (progress * (optim.cycles - 0.5) % 1.0))
            return optim.floor + (1.0 - optim.floor) * triangle
        return 1.0

    def apply(self, step: int) -> None:
        """Set every group's rate for optimiser step `step` (0-based)."""
        factor = self.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def observe(self, score: float) -> None:
        """Take note of a validation's score, the higher the better; only plateau cares."""
        if self.optim.schedule != "plateau":
            return
        if score > self.best:
            self.best, self.stale = score, 0
            return
        self.stale += 1
        if self.stale > self.optim.patience:
            self.cuts, self.stale = self.cuts + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs besides the step: plain values."""
        best = None if self.best == -math.inf else self.best
        return {"best": best, "stale": self.stale, "cuts": self.cuts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; the next :meth:`apply` sets the rates."""
        self.best = -math.inf if state["best"] is None else float(state["best"])
        self.stale, self.cuts = int(state["stale"]), int(state["cuts"])

    def _progress(self, step: int) -> float:
        return (step - self.warmup) / max(self.total_steps - self.warmup, 1)
