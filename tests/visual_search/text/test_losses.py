"""The contrastive losses against open_clip's, and against sums written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from visual_search.common.errors import UserError
from visual_search.text.losses import ContrastiveLoss, infonce, siglip


def sides(n: int = 7, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    photos, texts = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in "ab")
    return F.normalize(photos, dim=1), F.normalize(texts, dim=1)


def test_infonce_is_open_clips() -> None:
    from open_clip.loss import ClipLoss

    photos, texts = sides()
    scale = torch.tensor(14.0, dtype=torch.float64)
    theirs = ClipLoss()(photos, texts, scale)
    ours = infonce(scale * photos @ texts.T, torch.eye(7, dtype=torch.bool))
    assert float(ours) == pytest.approx(float(theirs), abs=1e-12)


def test_siglip_is_open_clips() -> None:
    from open_clip.loss import SigLipLoss

    photos, texts = sides()
    scale, bias = (torch.tensor(v, dtype=torch.float64) for v in (9.0, -8.0))
    theirs = SigLipLoss()(photos, texts, scale, bias)
    ours = siglip(scale * photos @ texts.T, torch.eye(7, dtype=torch.bool), bias)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-12)


@pytest.mark.parametrize("name", ["infonce", "siglip"])
def test_the_module_has_open_clips_gradients(name: str) -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    loss = ContrastiveLoss(name, 0.1)
    alone = torch.arange(7)
    grads = []
    for theirs in (False, True):
        photos, texts = (side.float().requires_grad_() for side in sides())
        if not theirs:
            value = loss(photos, texts, alone, alone)
        elif name == "infonce":
            value = ClipLoss()(photos, texts, loss.scale)
        else:
            value = SigLipLoss()(photos, texts, loss.scale, loss.bias)
        value.backward()
        grads.append((photos.grad, texts.grad))
    for ours, others in zip(*grads, strict=True):
        torch.testing.assert_close(ours, others)


def test_shared_names_are_right_for_both() -> None:
    similarities = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0], [2.0, 1.0, 1.0]])
    right = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    smoothing = 0.3

    def entropy(rows: torch.Tensor, wanted: torch.Tensor) -> float:
        total = 0.0
        for row, partners in zip(rows.tolist(), wanted.tolist(), strict=True):
            norm = math.log(sum(math.exp(value) for value in row))
            for value, partner in zip(row, partners, strict=True):
                share = (1 - smoothing) * partner / sum(partners) + smoothing / len(row)
                total -= share * (value - norm) / len(rows)
        return total

    expected = (entropy(similarities, right) + entropy(similarities.T, right.T)) / 2
    assert float(infonce(similarities, right, smoothing)) == pytest.approx(expected, abs=1e-6)


def test_equal_texts_and_equal_products_are_no_negatives() -> None:
    photos, texts = (side[:4].float() for side in sides())
    loss = ContrastiveLoss("infonce", 0.2, learn_temperature=False)
    groups, ids = torch.tensor([0, 0, 1, 2]), torch.tensor([5, 6, 7, 7])
    right = torch.eye(4, dtype=torch.bool)
    right[0, 1] = right[1, 0] = right[2, 3] = right[3, 2] = True
    expected = infonce(5.0 * photos @ texts.T, right)
    torch.testing.assert_close(loss(photos, texts, groups, ids), expected)
    assert not loss.log_scale.requires_grad


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="infonce, siglip"):
        ContrastiveLoss("triplet", 0.1)
    with pytest.raises(UserError, match=r"loss\.temperature is 0"):
        ContrastiveLoss("infonce", 0.0)
