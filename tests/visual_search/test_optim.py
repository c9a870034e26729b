import json
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.commands import refused
from visual_search.config import OptimConfig
from visual_search.optim import Schedule, build_optimizer, parameter_groups


def rates(head_lr: float, ratio: float, weight_decay: float, **more: Any) -> OptimConfig:
    return OptimConfig(head_lr=head_lr, backbone_lr_ratio=ratio, weight_decay=weight_decay, **more)


def test_groups_hold_every_parameter_once_with_its_rate_and_decay() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4))
    backbone[2].requires_grad_(False)  # frozen parameters are left out
    head = nn.Linear(4, 2)
    groups = parameter_groups(backbone, [head], rates(1e-2, 0.1, 0.5))
    by_name = {group["name"]: group for group in groups}
    assert by_name["backbone"]["lr"] == pytest.approx(1e-3)
    assert by_name["head_no_decay"]["lr"] == pytest.approx(1e-2)
    assert all(group["peak_lr"] == group["lr"] for group in groups)
    assert [p.shape for p in by_name["backbone"]["params"]] == [(4, 3, 3, 3)]
    assert len(by_name["backbone_no_decay"]["params"]) == 3  # bias, norm weight, norm bias
    assert by_name["backbone_no_decay"]["weight_decay"] == 0.0
    assert by_name["head"]["weight_decay"] == 0.5
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for m in (backbone[:2], head) for p in m.parameters())


def test_norms_over_planes_and_shared_parameters() -> None:
    backbone = nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 4))
    head = nn.Linear(4, 4)
    head.weight = backbone[1].weight  # type: ignore[assignment]
    by_name = {g["name"]: g for g in parameter_groups(backbone, [head], rates(1.0, 0.5, 0.1))}
    assert [p.shape for p in by_name["backbone"]["params"]] == [(4, 4)]
    assert {tuple(p.shape) for p in by_name["backbone_no_decay"]["params"]} == {(3, 4), (4,)}
    assert "head" not in by_name  # its only matrix is the backbone's
    assert len(by_name["head_no_decay"]["params"]) == 1


def test_layer_decay_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    depths = {f"{i}.{kind}": i for i in range(3) for kind in ("weight", "bias")}
    monkeypatch.setattr("visual_search.optim.layer_depths", lambda _: depths)
    groups = parameter_groups(backbone, [nn.Linear(2, 1)], rates(1.0, 0.1, 0.2, layer_decay=0.7))
    found = {group["name"]: group["peak_lr"] for group in groups}
    expected = {"backbone": 0.1, "backbone_layer1": 0.07, "backbone_layer0": 0.049, "head": 1.0}
    for name, rate in expected.items():
        assert found[name] == pytest.approx(rate)
        assert found[f"{name}_no_decay"] == pytest.approx(rate)
    assert len(found) == 8


@pytest.mark.parametrize("name", get_args(get_type_hints(OptimConfig)["name"]))
def test_each_name_builds_its_own_optimiser_and_it_trains(name: str) -> None:
    optim: OptimConfig = rates(0.02, 1.0, 1e-4, name=name, betas=(0.8, 0.95))
    optimizer = build_optimizer(optim, parameter_groups(nn.Linear(4, 1), [], optim))
    assert type(optimizer).__name__.lower() == name
    if name not in ("sgd", "adan"):
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    assert {group["name"] for group in optimizer.param_groups} == {"backbone", "backbone_no_decay"}
    assert one_step(name, 0.0) < 1.0


def one_step(name: Any, decay: float, gradient: float = 0.5, **options: Any) -> float:
    """The weight, from 1.0, after one step of rate 0.1."""
    weight = nn.Parameter(torch.ones(1, 1))
    groups = [{"name": "head", "params": [weight], "lr": 0.1, "weight_decay": decay}]
    optimizer = build_optimizer(OptimConfig(name, **options), groups)
    weight.grad = torch.full((1, 1), gradient)
    optimizer.step()
    return float(weight.detach())


def test_steps_by_hand() -> None:
    # Nesterov's first step: 0.1 * (1 + 0.9) * gradient; the decay adds 0.2 * 1 to the gradient.
    assert one_step("sgd", 0.0, momentum=0.9) == pytest.approx(1 - 0.1 * 1.9 * 0.5)
    assert one_step("sgd", 0.2, momentum=0.9) == pytest.approx(1 - 0.1 * 1.9 * 0.7)
    assert one_step("sgd", 0.0, momentum=0.0) == pytest.approx(1 - 0.1 * 0.5)
    # Adam's first step is the rate, whatever the gradient; adamw's decay comes on top of it.
    assert one_step("adam", 0.2) == pytest.approx(0.9)
    assert one_step("adamw", 0.2) == pytest.approx(1 - 0.1 * 0.2 - 0.1)
    assert one_step("lion", 0.2) == pytest.approx(1 - 0.1 * 0.2 - 0.1)


@pytest.mark.parametrize("name", ["adamw", "radam", "nadam", "lion", "adan", "lamb"])
def test_the_decay_is_decoupled(name: Any) -> None:
    """Without a gradient only the decay moves the weight, by rate * decay."""
    # adan divides by 1 + rate * decay instead.
    assert one_step(name, 0.2, gradient=0.0) == pytest.approx(0.98, abs=5e-4)


def test_what_cannot_be_built_says_so() -> None:
    refused("nothing is left to train", build_optimizer, OptimConfig("sgd"), [])


SCHEDULES = get_args(get_type_hints(OptimConfig)["schedule"])


def optimizer_with(*peaks: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in peaks])


def schedule_of(
    optimizer: torch.optim.Optimizer, name: Any, total: int, warmup_steps: int = 0, **more: Any
) -> Schedule:
    optim = OptimConfig(schedule=name, warmup_steps=warmup_steps, **more)
    return Schedule(optimizer, optim, total)


def rates_of(schedule: Schedule, steps: int) -> list[float]:
    """The first group's rate at each step."""
    seen = []
    for step in range(steps):
        schedule.apply(step)
        seen.append(schedule.optimizer.param_groups[0]["lr"])
    return seen


def test_cosine_is_torchs() -> None:
    ours = schedule_of(optimizer_with(2.0), "cosine", 50, floor=0.1)
    theirs_optimizer = optimizer_with(2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(theirs_optimizer, 50, eta_min=0.2)
    expected = []
    for _ in range(50):
        expected.append(theirs_optimizer.param_groups[0]["lr"])
        theirs_optimizer.step()
        theirs.step()
    assert rates_of(ours, 50) == pytest.approx(expected)


def test_step_falls_at_its_milestones() -> None:
    schedule = schedule_of(
        optimizer_with(1.0), "step", 100, warmup_steps=7, milestones=(0.3, 0.75), gamma=0.1,
        floor=0.05,
    )  # fmt: skip
    seen = rates_of(schedule, 100)
    assert seen[6] == 1.0
    assert seen[7:30] == [1.0] * 23
    assert seen[30:75] == pytest.approx([0.1] * 45)
    assert seen[75:] == pytest.approx([0.05] * 25)  # the floor


def test_cyclic_has_its_triangles_and_ends_low() -> None:
    # 35 steps: 5 of warm-up (cut to 3), then 1 -> 0 -> 1 -> 0 over 32 steps, with 2 cycles.
    schedule = schedule_of(optimizer_with(1.0), "cyclic", 35, warmup_steps=5, cycles=2)
    seen = rates_of(schedule, 36)
    assert seen[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    expected = [abs(1 - 2 * ((i * 1.5 / 32) % 1)) for i in range(33)]
    assert seen[3:] == pytest.approx(expected)
    assert seen[35] == pytest.approx(0.0)
    tops = [i for i in range(1, 35) if seen[i - 1] < seen[i] >= seen[i + 1]]
    assert len(tops) == 2


def test_constant_and_a_warm_up_cut_to_a_tenth_of_a_short_run() -> None:
    schedule = schedule_of(optimizer_with(3.0), "constant", 50, warmup_steps=4500)
    assert rates_of(schedule, 50) == pytest.approx([0.6, 1.2, 1.8, 2.4, 3.0] + [3.0] * 45)


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
