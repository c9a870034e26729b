import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visual_search.losses.margins import (
    adaface,
    arcface,
    class_margins,
    combined,
    cosface,
    curricular_negatives,
    sphereface,
    unchanged,
)


@pytest.mark.parametrize(
    ("kind", "counts", "expected"),
    [
        # 1^(-1/4) = 1 (rarest), 16^(-1/4) = 1/2, 81^(-1/4) = 1/3 (most frequent); 0 counts as 1.
        ("minmax", [0, 1, 16, 81], [0.5, 0.5, 0.05 + 0.45 * (1 / 2 - 1 / 3) / (1 - 1 / 3), 0.05]),
        ("minmax", [4, 4], [0.5, 0.5]),
        # 0.05 + 0.45 * n^(-1/4), whatever the other classes are.
        ("power", [0, 1, 16, 81], [0.5, 0.5, 0.275, 0.2]),
    ],
)
def test_class_margins_by_hand(kind: str, counts: list[int], expected: list[float]) -> None:
    assert class_margins(kind, torch.tensor(counts)).tolist() == pytest.approx(expected)


def falling(phi: float) -> float:
    """cos(phi) on 0..pi, then from each pi to the next the same fall again."""
    turns = 0
    while phi > math.pi:
        phi -= math.pi
        turns += 1
    return math.cos(phi) - 2 * turns


def by_angle(name: str, theta: float, margin: float) -> float:
    """The table of margins in terms of the angle, with fixed values of what else they take."""
    if name == "arcface":
        inside = math.cos(theta) > math.cos(math.pi - margin)
        return math.cos(theta + margin) if inside else math.cos(theta) - margin * math.sin(margin)
    if name == "cosface":
        return math.cos(theta) - margin
    if name == "combined":
        return falling(1.2 * theta + margin) - 0.1
    if name == "sphereface":
        return falling((1 + margin) * theta)
    if name == "adaface-long":
        return falling(max(theta - 0.7 * margin, 0.0)) - (margin + 0.7 * margin)
    if name == "adaface-short":
        return falling(theta + 0.7 * margin) - (margin - 0.7 * margin)
    return math.cos(theta)


MADE: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "arcface": arcface,
    "cosface": cosface,
    "combined": lambda cosine, margin: combined(cosine, margin, 1.2, 0.1),
    "sphereface": sphereface,
    "adaface-long": lambda cosine, margin: adaface(
        cosine, margin, torch.tensor(0.7, dtype=torch.float64)
    ),
    "adaface-short": lambda cosine, margin: adaface(
        cosine, margin, torch.tensor(-0.7, dtype=torch.float64)
    ),
    "softmax": unchanged,
}


@pytest.mark.parametrize("name", MADE)
@settings(deadline=None, max_examples=60)
@given(theta=st.floats(0.005, math.pi - 0.005), margin=st.floats(0.0, 1.2))
def test_value_and_slope_are_those_of_the_angle(name: str, theta: float, margin: float) -> None:
    cosine = torch.tensor([math.cos(theta)], dtype=torch.float64)
    margins = torch.tensor([margin], dtype=torch.float64)
    value, slope = MADE[name](cosine, margins)
    step = 1e-6
    below, here, above = (by_angle(name, theta + by, margin) for by in (-step, 0.0, step))
    left = (here - below) / (math.cos(theta) - math.cos(theta - step))
    right = (above - here) / (math.cos(theta + step) - math.cos(theta))
    if abs(left - right) > 1e-2 * (1 + abs(left)):
        return  # a corner, where two slopes are right
    assert value.item() == pytest.approx(here, abs=1e-9)
    assert slope.item() == pytest.approx((left + right) / 2, abs=2e-3, rel=2e-3)


def test_single_precision_keeps_small_angles() -> None:
    # 1 - 2e-7 in float32 is an angle of about 6e-4; the reference takes it as it is stored.
    cosine = torch.tensor([1 - 2e-7])
    theta = math.acos(float(cosine.double()))
    assert arcface(cosine, torch.tensor([0.5]))[0].item() == pytest.approx(
        math.cos(theta + 0.5), abs=1e-7
    )


def test_curricular_negatives_by_hand() -> None:
    cosine = torch.tensor([[0.2, 0.8], [0.6, -0.5]])
    value, slope = curricular_negatives(cosine, torch.tensor([[0.5], [-0.6]]), torch.tensor(0.3))
    torch.testing.assert_close(value, torch.tensor([[0.2, 0.8 * 1.1], [0.6 * 0.9, 0.5 * 0.2]]))
    torch.testing.assert_close(slope, torch.tensor([[1.0, 1.9], [1.5, -0.7]]))
