from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search.margins import SubCenterArcFace, add_angular_margin, class_margins


def test_class_margins_by_hand() -> None:
    # 1^(-1/4) = 1 (rarest), 16^(-1/4) = 1/2, 81^(-1/4) = 1/3 (most frequent).
    margins = class_margins(torch.tensor([1, 16, 81]))
    middle = 0.05 + 0.45 * (1 / 2 - 1 / 3) / (1 - 1 / 3)
    assert margins.tolist() == pytest.approx([0.5, middle, 0.05])


def test_class_margins_without_differences_and_without_photos() -> None:
    assert class_margins(torch.tensor([4, 4])).tolist() == pytest.approx([0.5, 0.5])
    empty_counts_as_one = class_margins(torch.tensor([0, 1, 100]))
    assert empty_counts_as_one.isfinite().all()
    assert empty_counts_as_one[0] == empty_counts_as_one[1]


@settings(deadline=None)
@given(st.floats(-0.9999, 0.9999), st.floats(0.0, 1.0))
def test_margin_is_the_formula_of_the_paper(cosine: float, margin: float) -> None:
    got = float(add_angular_margin(torch.tensor(cosine).double(), torch.tensor(margin).double()))
    theta = math.acos(cosine)
    if theta < math.pi - margin - 1e-6:
        assert got == pytest.approx(math.cos(theta + margin), abs=1e-6)
    elif theta > math.pi - margin + 1e-6:
        assert got == pytest.approx(cosine - margin * math.sin(margin), abs=1e-6)


@pytest.mark.parametrize("end", [1.0, -1.0])
def test_gradient_is_finite_at_the_ends(end: float) -> None:
    cosine = torch.full((4,), end, requires_grad=True)
    add_angular_margin(cosine, torch.tensor([0.0, 0.1, 0.5, 1.0])).sum().backward()
    assert cosine.grad is not None
    assert cosine.grad.isfinite().all()


def naive_logits(
    embeddings: list[list[float]],
    centers: list[list[list[float]]],
    labels: list[int],
    margins: list[float],
    scale: float,
) -> list[list[float]]:
    """Angles by acos, one pair at a time."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    answer = []
    for vector, label in zip(embeddings, labels, strict=True):
        row = []
        for number, of_class in enumerate(centers):
            theta = math.acos(max(cosine(vector, center) for center in of_class))
            row.append(scale * math.cos(theta + (margins[number] if number == label else 0.0)))
        answer.append(row)
    return answer


def test_logits_and_loss_equal_the_naive_ones() -> None:
    torch.manual_seed(0)
    margins = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    head = SubCenterArcFace(7, margins, centers=3, scale=30.0)
    embeddings = torch.randn(6, 7) * 3
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    expected = torch.tensor(
        naive_logits(
            embeddings.tolist(),
            head.weight.detach().view(5, 3, 7).tolist(),
            labels.tolist(),
            margins.tolist(),
            30.0,
        )
    )
    torch.testing.assert_close(head.logits(embeddings, labels), expected, atol=1e-3, rtol=1e-4)
    picked = expected.exp()[torch.arange(6), labels] / expected.exp().sum(dim=1)
    torch.testing.assert_close(head(embeddings, labels), -picked.log().mean(), atol=1e-3, rtol=1e-4)


def test_half_precision_input_gives_a_full_precision_loss() -> None:
    head = SubCenterArcFace(8, torch.full((4,), 0.5))
    embeddings = torch.randn(3, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(embeddings, torch.tensor([0, 1, 2]))
    assert loss.dtype == torch.float32
    loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
