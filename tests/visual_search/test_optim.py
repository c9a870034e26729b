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
    return torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in peaks or [1.0]]
    )


def schedule_of(
    optimizer: torch.optim.Optimizer, name: Any, total: int, warmup_steps: int = 0, **more: Any
) -> Schedule:
    optim = OptimConfig(schedule=name, warmup_steps=warmup_steps, **more)
    return Schedule(optimizer, optim, total)


def test_cosine_is_torchs() -> None:
    ours = schedule_of(optimizer_with(1.0), "cosine", 50, floor=0.1)
    theirs_optimizer = optimizer_with(2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(theirs_optimizer, 50, eta_min=0.2)
    expected = []
    for _ in range(50):
        expected.append(theirs_optimizer.param_groups[0]["lr"] / 2)
        theirs_optimizer.step()
        theirs.step()
    assert [ours.factor(step) for step in range(50)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        # Warm-ups are cut to a tenth of the run.
        ("constant", {"warmup_steps": 4500}, [0.2, 0.4, 0.6, 0.8, *[1.0] * 46]),
        (
            *("step", {"warmup_steps": 4, "milestones": (0.3, 0.8), "gamma": 0.1, "floor": 0.05}),
            [0.25, 0.5, 0.75, *[1.0] * 12, *[0.1] * 25, *[0.05] * 10],  # the floor
        ),
        # 1 -> 0 -> 1 -> 0 behind the warm-up.
        (
            *("cyclic", {"warmup_steps": 5, "cycles": 2}),
            [0.2, 0.4, 0.6, 0.8, 1.0, *(abs(1 - 2 * (i * 1.5 / 45 % 1)) for i in range(46))],
        ),
    ],
)
def test_shapes_by_hand(name: str, settings: dict[str, Any], expected: list[float]) -> None:
    schedule = schedule_of(optimizer_with(1.0), name, 50, **settings)
    assert [schedule.factor(step) for step in range(len(expected))] == pytest.approx(expected)


def test_plateau_is_torchs() -> None:
    scores = [0.1, 0.2, 0.2, 0.15, 0.1, 0.25, 0.25, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]
    optimizer, state = optimizer_with(1.0), None
    theirs_optimizer = optimizer_with(1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs_optimizer, mode="max", factor=0.5, patience=2, threshold=0.0
    )
    for position, score in enumerate(scores):
        schedule = schedule_of(optimizer, "plateau", 1000, gamma=0.5, patience=2)
        if state is not None:  # as a killed run continues
            schedule.load_state_dict(json.loads(state))
        schedule.observe(score)
        theirs.step(score)
        schedule.apply(10 + position)
        state = json.dumps(schedule.state_dict())
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            theirs_optimizer.param_groups[0]["lr"]
        )
    assert optimizer.param_groups[0]["lr"] == 0.125


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
