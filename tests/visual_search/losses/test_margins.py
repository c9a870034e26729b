import math

import pytest
import torch

from tests.visual_search.losses.angles import COMBINED, margined
from visual_search.losses.margins import MARGINS, arcface, class_margins, curricular_negatives


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


@pytest.mark.parametrize("quality", [-0.7, 0.7])
@pytest.mark.parametrize("name", ["arcface", "cosface", "combined", "sphereface", "adaface"])
def test_value_and_slope_are_those_of_the_angle(name: str, quality: float) -> None:
    theta = torch.linspace(0.005, math.pi - 0.005, 997, dtype=torch.float64).requires_grad_()
    more = {
        "combined": tuple(COMBINED.values()),
        "adaface": (torch.tensor(quality, dtype=torch.float64),),
    }
    for margin in torch.tensor([0.0, 0.3, 0.77, 1.2], dtype=torch.float64):
        expected = margined(name, theta, margin, quality)
        (by_theta,) = torch.autograd.grad(expected.sum(), theta)
        value, slope = MARGINS[name](torch.cos(theta.detach()), margin, *more.get(name, ()))
        torch.testing.assert_close(value, expected, atol=1e-9, rtol=1e-9)
        by_cosine = -by_theta / torch.sin(theta)
        torch.testing.assert_close(slope.expand(997), by_cosine, atol=1e-6, rtol=1e-6)


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
