"""Learning-rate schedules: a share of each group's own peak rate at every optimiser step.

The share is never above 1 and, after the warm-up, never below `floor`. As both are shares of the
group's own peak, a floor cannot lift the small rate of a backbone. Nothing here depends on the
number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from visual_search.errors import UserError

# Share of the way behind the warm-up, 0..1, to share of the peak, 0..1.
Shape = Callable[[float], float]


def constant(progress: float) -> float:
    """The peak all along."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def multistep(milestones: Sequence[float], gamma: float) -> Shape:
    """Times `gamma` at each of the `milestones`, shares of the way, 0..1."""

    def shape(progress: float) -> float:
        return gamma ** sum(progress >= milestone for milestone in milestones)

    return shape


def triangular(cycles: int) -> Shape:
    """`cycles` triangles (Smith, "Cyclical Learning Rates", WACV 2017, figure 2).

    The warm-up is the rising side of the first; the last ends at 0.
    """

    def shape(progress: float) -> float:
        return abs(1.0 - 2.0 * (progress * (cycles - 0.5) % 1.0))

    return shape


def lifted(shape: Shape, floor: float) -> Shape:
    """A shape over 0..1, squeezed into `floor`..1."""
    return lambda progress: floor + (1.0 - floor) * shape(progress)


def warmup_length(warmup_steps: int, total_steps: int) -> int:
    """Steps of the warm-up: cut to a tenth of a short run.

    So a small run on a large run's config still reaches its peak.
    """
    return min(warmup_steps, max(total_steps // 10, 1))


class Schedule:
    """Sets the rates of an optimiser's groups; :meth:`apply` it before every optimiser step."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str,
        total_steps: int,
        *,
        warmup_steps: int = 0,
        floor: float = 0.0,
        milestones: Sequence[float] = (0.5, 0.75),
        gamma: float = 0.1,
        patience: int = 2,
        cycles: int = 4,
    ) -> None:
        """
        Args:
            optimizer: its groups have `peak_lr`, or the rate they come with is their peak.
            name: a key of :data:`SHAPES`.
            total_steps: optimiser steps of the whole run.
            warmup_steps: of the linear part; see :func:`warmup_length`.
            floor: smallest share of its own peak that any rate falls to, 0..1.
            milestones: of step: shares of the run, 0..1, after which the rates fall.
            gamma: of step and plateau: factor of the rates where they fall, 0..1.
            patience: of plateau: validations without a gain before the rates fall.
            cycles: of cyclic: triangles in the run, at least 1.

        Raises:
            UserError: for a name nobody knows or a number out of its range.
        """
        if name not in SHAPES:
            raise UserError(f"optim.schedule {name!r} is unknown; write one of {', '.join(SHAPES)}")
        for key, value in (("floor", floor), ("gamma", gamma)):
            if not 0.0 <= value <= 1.0:
                raise UserError(f"optim.{key} = {value} is a share of a rate: write 0 to 1")
        if cycles < 1:
            raise UserError(f"optim.cycles = {cycles}: write 1 or more")
        self.optimizer, self.name, self.total_steps = optimizer, name, total_steps
        self.warmup = warmup_length(warmup_steps, total_steps)
        self.floor, self.gamma, self.patience = floor, gamma, patience
        reached = [self._progress(round(share * total_steps)) for share in milestones]
        self.shape = SHAPES[name](floor, reached, gamma, cycles)
        self.best, self.stale, self.cuts = -math.inf, 0, 0
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])
        self.apply(0)

    def factor(self, step: int) -> float:
        """The share of the peak rate, 0..1, at optimiser step `step` (0-based)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        shaped = self.shape(min(self._progress(step), 1.0)) * self.gamma**self.cuts
        return max(shaped, self.floor)

    def apply(self, step: int) -> None:
        """Set every group's rate for optimiser step `step` (0-based)."""
        factor = self.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def observe(self, score: float) -> None:
        """Take note of a validation's score, the higher the better; only plateau cares."""
        if self.name != "plateau":
            return
        if score > self.best:
            self.best, self.stale = score, 0
            return
        self.stale += 1
        if self.stale > self.patience:
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


# Each is given floor, milestones, gamma and cycles.
SHAPES: dict[str, Callable[[float, Sequence[float], float, int], Shape]] = {
    "cosine": lambda floor, milestones, gamma, cycles: lifted(cosine, floor),
    "constant": lambda floor, milestones, gamma, cycles: constant,
    "step": lambda floor, milestones, gamma, cycles: multistep(milestones, gamma),
    "cyclic": lambda floor, milestones, gamma, cycles: lifted(triangular(cycles), floor),
    "plateau": lambda floor, milestones, gamma, cycles: constant,
}
