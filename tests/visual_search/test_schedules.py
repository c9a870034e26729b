from __future__ import annotations

import json
import math
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from visual_search.config import OptimConfig
from visual_search.optim import Schedule

SCHEDULES = get_args(get_type_hints(OptimConfig)["schedule"])


def optimizer_with(*peaks: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in peaks])


def schedule_of(
    optimizer: torch.optim.Optimizer, name: Any, total: int, warmup_steps: int = 0, **more: Any
) -> Schedule:
    optim = OptimConfig(schedule=name, warmup_steps=warmup_steps, **more)
    return Schedule(optimizer, optim, total)


def rates(schedule: Schedule, steps: int) -> list[float]:
    """The first group's rate at each step."""
    seen = []
    for step in range(steps):
        schedule.apply(step)
        seen.append(schedule.optimizer.param_groups[0]["lr"])
    return seen


def test_cosine_by_hand() -> None:
    # 10 steps of warm-up in 110: the peak at step 9, half way down at step 60.
    schedule = schedule_of(optimizer_with(1.0), "cosine", 110, warmup_steps=10)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(9) == pytest.approx(1.0)
    assert schedule.factor(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule.factor(60) == pytest.approx(0.5)
    assert schedule.factor(110) == pytest.approx(0.0)
    assert schedule.factor(500) == pytest.approx(0.0)


def test_cosine_is_torchs() -> None:
    ours = schedule_of(optimizer_with(2.0), "cosine", 50, floor=0.1)
    theirs_optimizer = optimizer_with(2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(theirs_optimizer, 50, eta_min=0.2)
    expected = []
    for _ in range(50):
        expected.append(theirs_optimizer.param_groups[0]["lr"])
        theirs_optimizer.step()
        theirs.step()
    assert rates(ours, 50) == pytest.approx(expected)


def test_step_falls_at_its_milestones() -> None:
    schedule = schedule_of(
        optimizer_with(1.0), "step", 100, warmup_steps=7, milestones=(0.3, 0.75), gamma=0.1
    )
    seen = rates(schedule, 100)
    assert seen[6] == 1.0
    assert seen[7:30] == [1.0] * 23
    assert seen[30:75] == pytest.approx([0.1] * 45)
    assert seen[75:] == pytest.approx([0.01] * 25)


def test_step_stops_at_the_floor() -> None:
    schedule = schedule_of(optimizer_with(1.0), "step", 100, milestones=(0.3, 0.75), floor=0.05)
    assert schedule.factor(50) == pytest.approx(0.1)
    assert schedule.factor(90) == pytest.approx(0.05)


def test_cyclic_has_its_triangles_and_ends_low() -> None:
    # 35 steps: 5 of warm-up (cut to 3), then 1 -> 0 -> 1 -> 0 over 32 steps, with 2 cycles.
    schedule = schedule_of(optimizer_with(1.0), "cyclic", 35, warmup_steps=5, cycles=2)
    seen = rates(schedule, 36)
    assert seen[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    expected = [abs(1 - 2 * ((i * 1.5 / 32) % 1)) for i in range(33)]
    assert seen[3:] == pytest.approx(expected)
    assert seen[35] == pytest.approx(0.0)
    tops = [i for i in range(1, 35) if seen[i - 1] < seen[i] >= seen[i + 1]]
    assert len(tops) == 2


def test_constant_and_a_warm_up_cut_to_a_tenth_of_a_short_run() -> None:
    schedule = schedule_of(optimizer_with(3.0), "constant", 50, warmup_steps=4500)
    assert rates(schedule, 50) == pytest.approx([0.6, 1.2, 1.8, 2.4, 3.0] + [3.0] * 45)


def test_plateau_is_torchs() -> None:
    scores = [0.1, 0.2, 0.2, 0.15, 0.1, 0.25, 0.25, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]
    schedule = schedule_of(optimizer_with(1.0), "plateau", 1000, gamma=0.5, patience=2)
    theirs_optimizer = optimizer_with(1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs_optimizer, mode="max", factor=0.5, patience=2, threshold=0.0
    )
    for position, score in enumerate(scores):
        schedule.observe(score)
        theirs.step(score)
        schedule.apply(10 + position)
        assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(
            theirs_optimizer.param_groups[0]["lr"]
        )
    assert schedule.cuts == 3


def test_only_plateau_cares_for_scores() -> None:
    schedule = schedule_of(optimizer_with(1.0), "constant", 100)
    for _ in range(20):
        schedule.observe(0.0)
    assert schedule.factor(50) == 1.0


@given(
    name=st.sampled_from(SCHEDULES),
    total=st.integers(1, 500),
    warmup=st.integers(0, 600),
    floor=st.floats(0, 1),
    gamma=st.floats(0, 1),
    cycles=st.integers(1, 6),
)
def test_no_rate_leaves_floor_to_peak(
    name: str, total: int, warmup: int, floor: float, gamma: float, cycles: int
) -> None:
    optimizer = optimizer_with(3e-4, 3e-6)  # a head and its backbone
    schedule = schedule_of(
        optimizer, name, total, warmup_steps=warmup, floor=floor, gamma=gamma, cycles=cycles
    )
    for step in range(total + 3):
        if step % 20 == 0:
            schedule.observe(0.0)
        schedule.apply(step)
        head, backbone = (group["lr"] for group in optimizer.param_groups)
        assert 0.0 <= backbone <= 3e-6 * (1 + 1e-9)
        assert backbone == pytest.approx(head / 100)
        if step >= max(total // 10, 1):
            assert head >= 3e-4 * floor * (1 - 1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_continued_schedule_goes_on_as_if_nothing_had_happened(name: str) -> None:
    def one_run(schedule: Schedule, steps: range) -> list[float]:
        seen = []
        for step in steps:
            schedule.apply(step)
            seen.append(schedule.optimizer.param_groups[0]["lr"])
            if step % 5 == 0:
                schedule.observe(0.3 if step < 20 else 0.1)
        return seen

    def fresh() -> Schedule:
        return schedule_of(optimizer_with(0.1), name, 60, warmup_steps=6, patience=1, gamma=0.5)

    whole = one_run(fresh(), range(60))
    killed = fresh()
    one_run(killed, range(33))
    state = json.loads(json.dumps(killed.state_dict()))
    continued = fresh()
    continued.load_state_dict(state)
    assert one_run(continued, range(33, 60)) == whole[33:]


def test_the_peak_outlives_an_optimiser_that_is_loaded() -> None:
    def pair() -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = optimizer_with(0.1)
        return optimizer, schedule_of(optimizer, "cosine", 40, warmup_steps=4)

    optimizer, schedule = pair()
    schedule.apply(30)
    again, continued = pair()
    again.load_state_dict(optimizer.state_dict())
    continued.apply(10)
    assert again.param_groups[0]["lr"] == pytest.approx(0.1 * schedule.factor(10))
