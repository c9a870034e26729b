import pytest
import torch
import torch.nn.functional as F

from tests.commands import refused
from visual_search.losses.distillation import DISTILLATIONS, distillation_loss

STUDENT = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
TEACHER = torch.tensor([[0.6, 0.8], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mse", (0.16 + 0.64) / 2),
        ("l1", (0.4 + 0.8) / 2),
        ("cosine", (1 - 0.6) / 2),
        # Both pairs off the diagonal: 0 of the student's against the teacher's 0.8, and Huber's
        # loss of 0.8 is its square, halved.
        ("relational", 0.32),
    ],
)
def test_by_hand(kind: str, expected: float) -> None:
    assert float(distillation_loss(kind, STUDENT, TEACHER)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", DISTILLATIONS)
def test_a_perfect_student_has_nothing_to_learn(kind: str) -> None:
    rows = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    student, teacher = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    loss = distillation_loss(kind, student, teacher)
    loss.backward()
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6
    assert teacher.grad is None


def test_relational_equals_the_naive_loop_at_any_widths() -> None:
    generator = torch.Generator().manual_seed(1)
    student = F.normalize(torch.randn(5, 3, generator=generator), dim=1)
    teacher = F.normalize(torch.randn(5, 7, generator=generator), dim=1)
    costs = []
    for i in range(5):
        for j in range(5):
            if i != j:
                gap = abs(float(student[i] @ student[j] - teacher[i] @ teacher[j]))
                costs.append(gap**2 / 2 if gap < 1 else gap - 0.5)
    expected = sum(costs) / len(costs)
    assert float(distillation_loss("relational", student[:1], teacher[:1])) == 0.0
    assert float(distillation_loss("relational", student, teacher)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["mse", "l1", "cosine"])
def test_other_widths_are_refused_with_what_to_do(kind: str) -> None:
    refused("write relational", distillation_loss, kind, torch.zeros(2, 3), torch.zeros(2, 4))
