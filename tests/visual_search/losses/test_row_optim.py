from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.losses.partial_fc import RowAdamW, RowOptimizer, RowSGD, RowTable

ROWS, WIDTH = 5000, 4
MAKERS: dict[str, tuple[Callable[..., RowOptimizer], Any, dict[str, Any]]] = {
    "sgd": (RowSGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "plain sgd": (RowSGD, torch.optim.SGD, {"momentum": 0.0}),
    "adamw": (RowAdamW, torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.8, 0.99)}),
}


def table_of(weight: Tensor) -> RowTable:
    return RowTable(weight.clone())


@pytest.mark.parametrize("name", MAKERS)
def test_with_all_rows_it_is_the_optimiser_of_torch(name: str) -> None:
    maker, peer, settings = MAKERS[name]
    torch.manual_seed(0)
    weight = torch.randn(ROWS, WIDTH)
    table, parameter = table_of(weight), torch.nn.Parameter(weight.clone())
    ours, theirs = maker(table, 0.1, **settings), peer([parameter], lr=0.1, **settings)
    for number in range(5):
        gradient = torch.randn(ROWS, WIDTH)
        ours.lr = theirs.param_groups[0]["lr"] = 0.1 / (number + 1)
        table.add_gradient(torch.arange(ROWS), gradient.clone())
        parameter.grad = gradient
        ours.step()
        ours.zero_grad()
        theirs.step()
    torch.testing.assert_close(table.weight, parameter.detach())
    assert int(table.step) == 5


@pytest.mark.parametrize("name", MAKERS)
def test_a_row_moves_as_if_only_its_own_steps_had_been(name: str) -> None:
    # Each row by itself under the optimiser of torch, which sees only the row's own gradients.
    maker, peer, settings = MAKERS[name]
    torch.manual_seed(0)
    weight = torch.randn(3, WIDTH)
    table = table_of(weight)
    ours = maker(table, 0.1, **settings)
    alone = [torch.nn.Parameter(row.clone()) for row in weight]
    theirs = [peer([row], lr=0.1, **settings) for row in alone]
    for rows in ([0, 2], [2], [0, 1, 2], [2], [1, 2]):
        gradient = torch.randn(len(rows), WIDTH)
        table.add_gradient(torch.tensor(rows), gradient.clone())
        ours.step()
        ours.zero_grad()
        for row, of_row in zip(rows, gradient, strict=True):
            alone[row].grad = of_row
            theirs[row].step()
    torch.testing.assert_close(table.weight, torch.stack([row.detach() for row in alone]))


def test_gradients_of_several_backward_passes_add_up() -> None:
    table = table_of(torch.zeros(10, 2))
    dense = torch.zeros(10, 2)
    torch.manual_seed(0)
    for rows in ([1, 4], [1, 4], [0, 4, 9], [3]):
        gradient = torch.randn(len(rows), 2)
        dense[rows] += gradient
        table.add_gradient(torch.tensor(rows), gradient)
    optimizer = RowSGD(table, 1.0, momentum=0.0)
    assert optimizer.grad_norm_squared().item() == pytest.approx(dense.square().sum().item())
    optimizer.scale_grad_(0.5)
    optimizer.step()
    torch.testing.assert_close(table.weight, -0.5 * dense)
    optimizer.zero_grad()
    assert optimizer.grad_norm_squared().item() == 0
    optimizer.step()
    torch.testing.assert_close(table.weight, -0.5 * dense)


@pytest.mark.parametrize("name", MAKERS)
def test_continues_from_its_state(name: str) -> None:
    maker, _, settings = MAKERS[name]
    torch.manual_seed(0)
    weight, gradients = torch.randn(6, 2), torch.randn(4, 3, 2)
    rows = [torch.tensor(rows) for rows in ([0, 1, 2], [1, 3, 5], [0, 2, 4], [0, 1, 5])]

    def train(optimizer: RowOptimizer, first: int, last: int) -> None:
        for number in range(first, last):
            optimizer.table.add_gradient(rows[number], gradients[number].clone())
            optimizer.step()
            optimizer.zero_grad()

    undisturbed = maker(table_of(weight), 0.1, **settings)
    train(undisturbed, 0, 4)
    stopped = maker(table_of(weight), 0.1, **settings)
    train(stopped, 0, 2)
    resumed = maker(table_of(stopped.table.weight), 0.1, **settings)
    resumed.load_state_dict(stopped.state_dict())
    train(resumed, 2, 4)
    assert torch.equal(resumed.table.weight, undisturbed.table.weight)


def test_state_of_another_optimiser_is_refused() -> None:
    table = table_of(torch.zeros(2, 2))
    with pytest.raises(UserError, match="velocity"):
        RowAdamW(table, 0.1).load_state_dict(RowSGD(table, 0.1).state_dict())
