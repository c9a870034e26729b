"""Matryoshka training: prefixes of the embedding under the head's prefixes."""

from typing import Any

import pytest
import torch
from torch import nn

from visual_search.config import MarginConfig, PhaseConfig, TrainConfig
from visual_search.losses.margin_head import MarginHead
from visual_search.model.embedder import Embedder
from visual_search.objective import Learner

COUNTS = torch.tensor([3, 5, 2, 7])


def config(**settings: Any) -> MarginConfig:
    return MarginConfig(**{"class_margins": "none", **settings})


def head(dimension: int, weight: torch.Tensor, centers: int) -> MarginHead:
    made = MarginHead(dimension, COUNTS, config(centers=centers, scale=8.0, margin=0.3))
    made.weight.data.copy_(weight)
    return made


@pytest.mark.parametrize("centers", [1, 3])
def test_a_prefix_is_scored_as_by_a_narrow_head(centers: int) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(6, 10, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    wide = head(10, torch.randn(4 * centers, 10), centers)
    narrow = head(4, wide.weight.data[:, :4], centers)
    short = embeddings.detach()[:, :4].clone().requires_grad_()
    ours, theirs = wide.prefix_losses(embeddings, labels, 4), narrow(short, labels)
    torch.testing.assert_close(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    assert embeddings.grad is not None
    assert short.grad is not None
    assert wide.weight.grad is not None
    torch.testing.assert_close(embeddings.grad[:, :4], short.grad)
    torch.testing.assert_close(wide.weight.grad[:, :4], narrow.weight.grad)
    assert not embeddings.grad[:, 4:].any()
    assert not wide.weight.grad[:, 4:].any()


def test_the_loss_is_the_mean_over_the_widths() -> None:
    torch.manual_seed(0)
    embedder = Embedder(nn.Identity(), nn.Linear(5, 8), (0.0,) * 3, (1.0,) * 3)
    margin = config(centers=1, nested=(2, 4), dropout=0.0)
    phase = PhaseConfig(margin=margin, train=TrainConfig(cache_features=True))
    learner = Learner(embedder, 8, phase, COUNTS)
    made = learner.head
    assert made is not None
    features, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = learner(features, labels, torch.arange(6))
    embeddings = embedder.neck(features)
    parts = [made(embeddings, labels)]
    parts += [made.prefix_losses(embeddings, labels, width) for width in (2, 4)]
    torch.testing.assert_close(loss, torch.stack(parts).mean())


def test_what_a_margin_learns_of_the_data_is_that_of_whole_embeddings() -> None:
    torch.manual_seed(0)
    made = MarginHead(8, COUNTS, config(centers=1, name="adacos")).train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.prefix_losses(torch.randn(4, 8), torch.arange(4), 3)
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    made(torch.randn(4, 8), torch.arange(4))
    assert any(not torch.equal(before[name], value) for name, value in made.state_dict().items())
