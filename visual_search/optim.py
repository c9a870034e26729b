"""Parameter groups, optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(
    backbone: nn.Module,
    others: Iterable[nn.Module],
    head_lr: float,
    backbone_lr_ratio: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups for AdamW: the backbone at a fraction of the head's rate; no decay on 1-D tensors.

    Biases and the scales of normalisation layers are the parameters of one dimension.
    """
    groups = []
    parts = [("backbone", [backbone], head_lr * backbone_lr_ratio), ("head", others, head_lr)]
    for name, modules, lr in parts:
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        for suffix, decay, chosen in (
            ("", weight_decay, [p for p in parameters if p.ndim > 1]),
            ("_no_decay", 0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                groups.append(
                    {"name": name + suffix, "params": chosen, "lr": lr, "weight_decay": decay}
                )
    return groups


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """The share of the peak learning rate at an optimiser step: linear up, then cosine to 0.

    A warm-up longer than a tenth of a short run is cut to that tenth, so that a small run on
    a large run's config still reaches its peak.

    Args:
        step: 0-based.
        warmup_steps: of the linear part.
        total_steps: of the whole run.
    """
    warmup = min(warmup_steps, max(total_steps // 10, 1))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def build_optimizer(
    groups: list[dict[str, Any]], warmup_steps: int, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and the warm-up + cosine schedule; the schedule is stepped once an optimiser step."""
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup_steps, total_steps)
    )
    return optimizer, scheduler
