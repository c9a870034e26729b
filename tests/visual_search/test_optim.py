from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from visual_search.optim import build_optimizer, parameter_groups, warmup_cosine


def test_groups_hold_every_parameter_once_with_its_rate_and_decay() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    head = nn.Linear(4, 2)
    groups = parameter_groups(backbone, [head], 1e-2, 0.1, 0.5)
    by_name = {group["name"]: group for group in groups}
    assert by_name["backbone"]["lr"] == pytest.approx(1e-3)
    assert by_name["head_no_decay"]["lr"] == pytest.approx(1e-2)
    assert [p.shape for p in by_name["backbone"]["params"]] == [(4, 3, 3, 3)]
    assert len(by_name["backbone_no_decay"]["params"]) == 3  # bias, norm weight, norm bias
    assert by_name["backbone_no_decay"]["weight_decay"] == 0.0
    assert by_name["head"]["weight_decay"] == 0.5
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for m in (backbone, head) for p in m.parameters())


def test_frozen_parameters_are_left_out() -> None:
    backbone = nn.Linear(2, 2).requires_grad_(False)
    assert all("head" in g["name"] for g in parameter_groups(backbone, [nn.Linear(2, 2)], 1, 1, 0))


def test_schedule_by_hand() -> None:
    # 10 steps of warm-up in 110: the peak at step 9, half way down at step 60.
    assert warmup_cosine(0, 10, 110) == pytest.approx(0.1)
    assert warmup_cosine(9, 10, 110) == pytest.approx(1.0)
    assert warmup_cosine(60, 10, 110) == pytest.approx(0.5)
    assert warmup_cosine(35, 10, 110) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert warmup_cosine(110, 10, 110) == pytest.approx(0.0)


def test_long_warmup_is_cut_to_a_tenth_of_a_short_run() -> None:
    assert max(warmup_cosine(step, 4500, 50) for step in range(50)) == 1.0


def test_scheduler_drives_the_groups() -> None:
    groups = parameter_groups(nn.Linear(2, 2), [nn.Linear(2, 2)], 1.0, 0.1, 0.0)
    optimizer, scheduler = build_optimizer(groups, 2, 20)
    seen = []
    for _ in range(20):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen[0] == pytest.approx([0.05, 0.05, 0.5, 0.5])
    assert seen[1] == pytest.approx([0.1, 0.1, 1.0, 1.0])
    assert seen[-1][0] < 0.01
    assert isinstance(optimizer, torch.optim.AdamW)
