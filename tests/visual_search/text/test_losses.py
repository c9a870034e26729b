"""The contrastive losses against open_clip's, and against sums written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.visual_search.losses.ranks import on_two_ranks
from visual_search.text.config import ContrastiveConfig
from visual_search.text.losses import ContrastiveLoss


def sides(n: int = 7, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, texts = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in "ab")
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def test_values_and_gradients_are_open_clips() -> None:
    from open_clip.loss import ClipLoss

    loss = ContrastiveLoss(ContrastiveConfig(temperature=0.1))
    alone = torch.arange(7)
    values, grads = [], []
    for theirs in (False, True):
        images, texts = (side.float().requires_grad_() for side in sides())
        if theirs:
            value = ClipLoss()(images, texts, loss.scale)
        else:
            value = loss(images, texts, alone, alone)
        value.backward()
        values.append(value.detach())
        grads.append((images.grad, texts.grad))
    torch.testing.assert_close(*values)
    for ours, others in zip(*grads, strict=True):
        torch.testing.assert_close(ours, others)


def test_two_ranks_are_one_with_the_joint_batch() -> None:
    groups, ids = torch.arange(6) % 5, torch.tensor([0, 1, 2, 3, 3, 4])

    def act(rank: int, count: int = 2) -> tuple[torch.Tensor, ...]:
        loss = ContrastiveLoss(ContrastiveConfig(temperature=0.1))
        images, texts = (s[:6].float().chunk(count)[rank].requires_grad_() for s in sides())
        value = loss(images, texts, groups.chunk(count)[rank], ids.chunk(count)[rank])
        value.backward()
        assert images.grad is not None
        assert texts.grad is not None
        # Each rank's loss depends on all rows; ranks are averaged afterwards.
        return value.detach(), images.grad / count, texts.grad / count

    expected, (first, second) = act(0, 1), on_two_ranks(act)
    torch.testing.assert_close(first[0], expected[0])
    for one, other, joint in zip(first[1:], second[1:], expected[1:], strict=True):
        torch.testing.assert_close(torch.cat([one, other]), joint)


def test_equal_texts_and_equal_products_are_no_negatives() -> None:
    images, texts = (side[:4].float() for side in sides())
    loss = ContrastiveLoss(ContrastiveConfig("infonce", 0.2, False, label_smoothing=0.3))
    groups, ids = torch.tensor([0, 0, 1, 2]), torch.tensor([5, 6, 7, 7])
    right = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    similarities = 5.0 * images @ texts.T
    expected = 0.0
    for rows in (similarities, similarities.T):
        for row, partners in zip(rows.tolist(), right.tolist(), strict=True):
            norm = math.log(sum(math.exp(value) for value in row))
            for value, partner in zip(row, partners, strict=True):
                share = 0.7 * partner / sum(partners) + 0.3 / len(row)
                expected += share * (norm - value) / 8
    assert float(loss(images, texts, groups, ids)) == pytest.approx(expected, abs=1e-6)
    assert not loss.log_scale.requires_grad
