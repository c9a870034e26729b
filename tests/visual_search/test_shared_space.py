"""Projections against their formulas."""

from __future__ import annotations

import pytest
import torch

from visual_search.errors import UserError
from visual_search.shared_space import ClusterProjections, ResidualProjection, create_projection


def test_the_residual_block() -> None:
    torch.manual_seed(0)
    block = ResidualProjection(6, 4, dropout=0.5).eval()
    x = torch.randn(3, 6)
    projected = x @ block.first.weight.T + block.first.bias
    activated = projected / (1 + torch.exp(-1.702 * projected))
    summed = projected + activated @ block.second.weight.T + block.second.bias
    centred = summed - summed.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block(x), expected)


def test_projections_are_mixed_by_the_classifier() -> None:
    torch.manual_seed(0)
    mixed = ClusterProjections("linear", 5, 3, clusters=4)
    x = torch.randn(6, 5)
    # All alike at the start: the mixture is the one projection.
    torch.testing.assert_close(mixed(x), mixed.projections[0](x))
    for parameter in mixed.parameters():
        torch.nn.init.normal_(parameter)
    output, logits = mixed.with_logits(x)
    torch.testing.assert_close(logits, mixed.classifier(x))
    for row, vector in zip(x, output, strict=True):
        weights = torch.softmax(mixed.classifier(row), dim=0)
        parts = [w * p(row) for w, p in zip(weights, mixed.projections, strict=True)]
        torch.testing.assert_close(vector, torch.stack(parts).sum(0))


def test_both_losses_reach_the_classifier() -> None:
    mixed = ClusterProjections("linear", 5, 3, clusters=2)
    for parameter in mixed.projections[1].parameters():
        torch.nn.init.normal_(parameter)
    mixed(torch.randn(6, 5)).square().sum().backward()
    assert mixed.classifier.weight.grad is not None
    assert mixed.classifier.weight.grad.abs().sum() > 0


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="linear, residual"):
        create_projection("cubic", 3, 3)
