"""Two ranks that gather are one with the joint batch."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.visual_search.losses.ranks import on_two_ranks
from visual_search.config import PairLossConfig
from visual_search.losses.gathering import gather_constant, gather_rows
from visual_search.losses.xbm import XbmLoss


def batch_of(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 3, (8,), generator=generator)
    ids = torch.randint(0, 30, (8,), generator=generator)
    return torch.randn(8, 6, generator=generator) + 0.5, labels, ids


def trained(name: Any, weight: Tensor, rank: int, count: int) -> dict[str, Any]:
    """Five steps of a linear embedder; the mean of the ranks' losses, and where they end."""
    config = PairLossConfig(name, memory=20, memory_start=1)
    embed, loss = nn.Parameter(weight.clone()), XbmLoss(config, 5)
    losses: list[Tensor] = []
    for step in range(5):
        rows, labels, ids = (part.chunk(count)[rank] for part in batch_of(step))
        value = loss(F.normalize(rows @ embed.T, dim=1), labels, ids)
        embed.grad = None
        value.backward()
        assert embed.grad is not None
        if count > 1:
            dist.all_reduce(embed.grad)
        with torch.no_grad():
            embed -= 0.1 * embed.grad / count
        losses.append(gather_constant(value.detach()[None]).mean())
    state = {f"loss.{key}": held for key, held in loss.state_dict().items()}
    return {"losses": torch.stack(losses), "embed": embed.detach(), **state}


@pytest.mark.parametrize("name", ["contrastive", "multi-similarity"])
def test_losses_weights_and_memory_are_those_of_one_rank(name: str) -> None:
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) / 3
    expected = trained(name, weight, 0, 1)
    for found in on_two_ranks(lambda rank: trained(name, weight, rank, 2)):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-5, msg=key)
    assert int(expected["loss.memory.count"]) == 20


def test_rows_come_in_the_order_of_ranks_and_gradients_go_back_summed() -> None:
    def act(rank: int) -> tuple[list[int], list[float]]:
        rows = torch.full((2, 1), float(rank), requires_grad=True)
        weights = torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * (rank + 1)
        (gather_rows(rows) * weights).sum().backward()
        assert rows.grad is not None
        return gather_constant(torch.tensor([rank, 7])).tolist(), rows.grad.flatten().tolist()

    first, second = on_two_ranks(act)
    assert first[0] == second[0] == [0, 7, 1, 7]
    # Rank 0 weighs the four rows 1, 2, 3, 4, rank 1 twice as much: each row gets thrice that.
    assert (first[1], second[1]) == ([3.0, 6.0], [9.0, 12.0])


def test_unequal_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different sizes, \[2, 3\]"):
        on_two_ranks(lambda rank: gather_rows(torch.zeros(2 + rank, 3)))


def test_one_process_gathers_nothing() -> None:
    rows = torch.zeros(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows
    assert not gather_constant(rows).requires_grad
