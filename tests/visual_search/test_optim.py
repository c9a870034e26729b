from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from visual_search.common.errors import UserError
from visual_search.config import OptimConfig
from visual_search.optim import build_optimizer, parameter_groups


def rates(head_lr: float, ratio: float, weight_decay: float, **more: Any) -> OptimConfig:
    return OptimConfig(head_lr=head_lr, backbone_lr_ratio=ratio, weight_decay=weight_decay, **more)


def test_groups_hold_every_parameter_once_with_its_rate_and_decay() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
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
    assert sorted(held) == sorted(id(p) for m in (backbone, head) for p in m.parameters())


def test_frozen_parameters_are_left_out() -> None:
    backbone = nn.Linear(2, 2).requires_grad_(False)
    assert all(
        "head" in g["name"] for g in parameter_groups(backbone, [nn.Linear(2, 2)], rates(1, 1, 0))
    )


def test_norms_over_planes_and_shared_parameters() -> None:
    backbone = nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 4))
    head = nn.Linear(4, 4)
    head.weight = backbone[1].weight  # type: ignore[assignment]
    by_name = {g["name"]: g for g in parameter_groups(backbone, [head], rates(1.0, 0.5, 0.1))}
    assert [p.shape for p in by_name["backbone"]["params"]] == [(4, 4)]
    assert {tuple(p.shape) for p in by_name["backbone_no_decay"]["params"]} == {(3, 4), (4,)}
    assert "head" not in by_name  # its only matrix is the backbone's
    assert len(by_name["head_no_decay"]["params"]) == 1


def test_layer_decay_by_hand() -> None:
    backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    depths = {f"{i}.{kind}": i for i in range(3) for kind in ("weight", "bias")}
    decayed = rates(1.0, 0.1, 0.2, layer_decay=0.7)
    groups = parameter_groups(backbone, [nn.Linear(2, 1)], decayed, depths)
    found = {group["name"]: group["peak_lr"] for group in groups}
    expected = {"backbone": 0.1, "backbone_layer1": 0.07, "backbone_layer0": 0.049, "head": 1.0}
    for name, rate in expected.items():
        assert found[name] == pytest.approx(rate)
        assert found[f"{name}_no_decay"] == pytest.approx(rate)
    assert len(found) == 8
    with pytest.raises(ValueError, match=r"depth of '0.weight'"):
        parameter_groups(backbone, [], decayed)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", "AdamW"),
        ("adam", "Adam"),
        ("sgd", "SGD"),
        ("radam", "RAdam"),
        ("nadam", "NAdam"),
        ("lion", "Lion"),
        ("adan", "Adan"),
        ("lamb", "Lamb"),
    ],
)
def test_each_name_builds_its_own_optimiser_and_it_trains(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    x = torch.randn(64, 4)
    target = x @ torch.tensor([[1.0], [-1.0], [0.5], [0.0]])
    optim: OptimConfig = rates(0.02, 1.0, 1e-4, name=name)
    optimizer = build_optimizer(optim, parameter_groups(model, [], optim))
    assert type(optimizer).__name__ == kind
    assert {group["name"] for group in optimizer.param_groups} == {"backbone", "backbone_no_decay"}
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ((model(x) - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def one_step(name: Any, decay: float, **options: Any) -> float:
    """The weight, from 1.0, after one step of rate 0.1 with gradient 0.5."""
    weight = nn.Parameter(torch.ones(1, 1))
    groups = [{"name": "head", "params": [weight], "lr": 0.1, "weight_decay": decay}]
    optimizer = build_optimizer(OptimConfig(name, **options), groups)
    weight.grad = torch.full((1, 1), 0.5)
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
    weight = nn.Parameter(torch.ones(1, 1))
    groups = [{"name": "head", "params": [weight], "lr": 0.1, "weight_decay": 0.2}]
    optimizer = build_optimizer(OptimConfig(name), groups)
    weight.grad = torch.zeros(1, 1)
    optimizer.step()
    # adan divides by 1 + rate * decay instead.
    assert float(weight.detach()) == pytest.approx(0.98, abs=5e-4)


def test_betas_reach_the_optimiser() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    groups = [{"name": "head", "params": [weight], "lr": 0.1, "weight_decay": 0.0}]
    optimizer = build_optimizer(OptimConfig("adamw", betas=(0.8, 0.95)), groups)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.1)


def test_what_cannot_be_built_says_so() -> None:
    with pytest.raises(UserError, match="nothing is left to train"):
        build_optimizer(OptimConfig("sgd"), [])
