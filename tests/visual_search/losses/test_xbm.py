from collections import deque
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.visual_search.naive_pairs import naive_pair_loss
from visual_search.config import PairLossConfig
from visual_search.losses.pairs import PAIR_LOSSES, Samples
from visual_search.losses.xbm import CrossBatchMemory, XbmLoss


def batch_of(step: int, size: int = 4, classes: int = 3, dimension: int = 5) -> Samples:
    generator = torch.Generator().manual_seed(step)
    rows = torch.randn(size, dimension, generator=generator) + 0.6
    labels = torch.randint(0, classes, (size,), generator=generator)
    # Nine photos in all: they come back, some within one batch.
    ids = torch.randint(0, 9, (size,), generator=generator)
    return Samples(F.normalize(rows, dim=1), labels, ids)


@pytest.mark.parametrize("size", [1, 3, 4, 10, 64])
def test_memory_holds_the_newest(size: int) -> None:
    memory = CrossBatchMemory(size, 1)
    expected: deque[int] = deque(maxlen=size)
    number = 0
    for length in (4, 4, 1, 7, 4, 13):
        ids = torch.arange(number, number + length)
        memory.enqueue(Samples(ids[:, None].float() / 2, ids % 3, ids))
        expected.extend(ids.tolist())
        number += length
        held = memory.held()
        assert sorted(held.ids.tolist()) == list(expected)
        assert held.labels.equal(held.ids % 3)
        assert held.embeddings.equal(held.ids[:, None].float() / 2)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("size", [0, 6, 100])
def test_every_step_equals_the_naive_one(name: Any, size: int) -> None:
    config = PairLossConfig(name, memory=size, memory_weight=0.7, memory_start=2)
    loss = XbmLoss(config, 5)
    earlier: list[Samples] = []
    for step in range(5):
        batch = batch_of(step)
        ours = batch.embeddings.clone().requires_grad_()
        theirs = batch.embeddings.clone().requires_grad_()
        value = loss(ours, batch.labels, batch.ids)
        now = Samples(theirs, batch.labels, batch.ids)
        expected = naive_pair_loss(name, now, now)
        if size and step >= 2:
            names = ("embeddings", "labels", "ids")
            past = (torch.cat([getattr(old, name) for old in earlier])[-size:] for name in names)
            newest = Samples(*past)
            expected = expected + 0.7 * naive_pair_loss(name, now, newest)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6), step
        value.backward()
        expected.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)
        earlier.append(batch)


def test_an_evaluation_leaves_no_trace() -> None:
    loss = XbmLoss(PairLossConfig("contrastive", memory=8), 5)
    first, second = batch_of(0), batch_of(1)
    loss(first.embeddings, first.labels, first.ids)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    loss.eval()
    loss(second.embeddings, second.labels, second.ids)
    assert all(value.equal(before[key]) for key, value in loss.state_dict().items())
