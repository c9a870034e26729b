import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.commands import refused
from tests.visual_search.losses.ranks import on_two_ranks
from visual_search.config import MarginConfig, OptimConfig
from visual_search.losses import partial_fc
from visual_search.losses.margin_head import MarginHead
from visual_search.losses.margins import MARGINS
from visual_search.losses.partial_fc import (
    RowOptimizer,
    RowTable,
    SampledMarginHead,
    sampled_classes,
)
from visual_search.optim import build_optimizer

CLASSES, DIMENSION, ROWS = 41, 8, 6


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(ROWS, DIMENSION, generator=generator) * 3
    return embeddings, torch.randint(CLASSES, (ROWS,), generator=generator)


def settings(name: str, share: float = 1.0, **more: Any) -> MarginConfig:
    """`share`, of the other classes that enter a step."""
    plain = {"centers": 2, "scale": 12.0, "margin": 0.3, "class_margins": "none"}
    return MarginConfig(**{**plain, "name": name, "sampled_share": share, **more})


def counts() -> Tensor:
    return torch.arange(1, CLASSES + 1)


def optim(name: Any = "sgd", **more: Any) -> OptimConfig:
    return OptimConfig(name, **{"head_lr": 0.1, "weight_decay": 0.0, **more})


@pytest.mark.parametrize("name", MARGINS)
def test_with_all_classes_it_is_the_full_head(name: str) -> None:
    options = settings(name, label_smoothing=0.1, focal_gamma=1.5)
    full = MarginHead(DIMENSION, counts(), options)
    sampled = SampledMarginHead(DIMENSION, counts(), options)
    assert torch.equal(full.weight, sampled.weight)
    group = {"params": [*full.parameters()], "lr": 0.1, "weight_decay": 0.0}
    by_torch = build_optimizer(optim(), [group])
    by_rows = sampled.row_optimizer(optim())
    for seed in range(3):
        (embeddings, labels), (same, _) = batch(seed), batch(seed)
        torch.manual_seed(seed)
        expected = full(embeddings.requires_grad_(), labels)
        torch.manual_seed(seed)
        losses = sampled(same.requires_grad_(), labels)
        torch.testing.assert_close(losses, expected)
        by_torch.zero_grad()
        by_rows.zero_grad()
        expected.mean().backward()
        losses.mean().backward()
        torch.testing.assert_close(same.grad, embeddings.grad)
        by_torch.step()
        by_rows.step()
        torch.testing.assert_close(sampled.weight, full.weight.detach())


def test_the_sample() -> None:
    labels = torch.tensor([3, 99_999])
    chosen = sampled_classes(100_000, 0.1, 7, 5, labels)
    assert chosen[labels].all()
    assert chosen.float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert torch.equal(chosen, sampled_classes(100_000, 0.1, 7, 5, labels))
    drawn = [sampled_classes(100_000, 0.1, *draw, labels) for draw in ((7, 6), (8, 5), (6, 7))]
    for one, other in itertools.combinations([chosen, *drawn], 2):
        # Independent draws have a hundredth of the classes in common.
        assert (one & other).float().mean().item() == pytest.approx(0.01, abs=0.002)


def test_a_step_is_a_full_step_over_the_sampled_classes() -> None:
    options = settings("arcface", share=0.3, label_smoothing=0.1)
    sampled = SampledMarginHead(DIMENSION, counts(), options, seed=3)
    embeddings, labels = batch(0)
    chosen = sampled_classes(CLASSES, 0.3, 3, 0, labels).nonzero().squeeze(1)
    assert ROWS < len(chosen) < CLASSES
    full = MarginHead(DIMENSION, torch.ones(len(chosen)), options)
    of_classes = sampled.weight.view(CLASSES, 2, DIMENSION)
    full.weight.data.copy_(of_classes[chosen].view(-1, DIMENSION))
    there = torch.searchsorted(chosen, labels)
    losses = sampled(embeddings, labels)
    torch.testing.assert_close(losses, full(embeddings, there))
    before = sampled.weight.clone().view(CLASSES, 2, DIMENSION)
    # The embeddings need no gradient, as from a frozen backbone; the centres still learn.
    losses.mean().backward()
    full(embeddings, there).mean().backward()
    assert sampled.table.gradient is not None
    torch.testing.assert_close(sampled.table.gradient.values(), full.weight.grad)
    sampled.row_optimizer(optim()).step()
    moved = (sampled.weight.view_as(before) != before).flatten(1).any(dim=1)
    assert moved.nonzero().squeeze(1).tolist() == chosen.tolist()
    assert sampled.eval()(embeddings, labels).isfinite().all()


CASES = [
    (settings("arcface", share=0.3, label_smoothing=0.1), "sgd"),
    (settings("adaface", share=1.0, class_margins="power"), "adamw"),
    (settings("curricularface", share=0.5, curricular_momentum=0.5), "sgd"),
    (settings("adacos", share=0.5), "sgd"),
    (settings("softmax", share=0.05), "adamw"),
]


def train(case: int, rank: int, count: int) -> dict[str, Tensor]:
    """Two steps, the second of two accumulated backward passes; this process's part of each."""
    options, kind = CASES[case]
    head = SampledMarginHead(DIMENSION, counts(), options)
    optimizer = head.row_optimizer(optim(kind, weight_decay=0.01))
    size, found = ROWS // count, dict[str, Tensor]()
    for step, seeds in enumerate(([0], [1, 2])):
        for seed in seeds:
            embeddings, labels = batch(seed)
            own = slice(rank * size, (rank + 1) * size)
            part = embeddings[own].clone().requires_grad_()
            losses = head(part, labels[own])
            losses.mean().backward()
            assert part.grad is not None
            found[f"losses {seed}"] = losses.detach()
            # Averaging over processes comes later, with the model's own gradients.
            found[f"gradient {seed}"] = part.grad / count
        found[f"norm {step}"] = optimizer.grad_norm_squared()[None]
        optimizer.step()
        optimizer.zero_grad()
    for name, held in {**head.state_dict(), **optimizer.state_dict()}.items():
        found[f"state {name}"] = held
    return found


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_ranks_are_one_with_the_joint_batch(case: int) -> None:
    first, second = on_two_ranks(lambda rank: train(case, rank, 2))
    for name, wanted in train(case, 0, 1).items():
        got = first[name]
        if name.startswith(("losses", "gradient")) or got.shape != wanted.shape:
            got = torch.cat([got, second[name]])
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5, msg=name)


def test_a_replicated_head_learns_from_the_batches_of_all_ranks() -> None:
    def observe(rank: int, count: int) -> Tensor:
        head, (embeddings, labels) = MarginHead(DIMENSION, counts(), settings("adaface")), batch(0)
        head(embeddings.chunk(count)[rank], labels.chunk(count)[rank])
        return torch.stack([head.rule.length_mean, head.rule.length_std])

    for observed in on_two_ranks(lambda rank: observe(rank, 2)):
        torch.testing.assert_close(observed, observe(0, 1))


def table_of(weight: Tensor) -> RowTable:
    return RowTable(weight.clone())


@pytest.mark.parametrize(
    ("peer", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.SGD, {"momentum": 0.0}),
        (torch.optim.AdamW, {"betas": (0.8, 0.99), "weight_decay": 0.1}),
    ],
)
def test_a_row_moves_as_if_only_its_own_steps_had_been(
    peer: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each row by itself under the optimiser of torch, which sees only the row's own gradients.
    monkeypatch.setattr(partial_fc, "_BLOCK", 2)
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    table = table_of(weight)
    ours = RowOptimizer(table, optim(peer.__name__.lower(), **settings))
    alone = [torch.nn.Parameter(row.clone()) for row in weight]
    more = {"nesterov": True} if settings.get("momentum") else {}
    theirs = [peer([row], lr=0.1, **settings, **more) for row in alone]
    for number, rows in enumerate(([0, 2], [2], [0, 1, 2], [2], [1, 2]), start=1):
        gradient = torch.randn(len(rows), 4)
        ours.lr = 0.1 / number
        table.add_gradient(torch.tensor(rows), gradient.clone())
        ours.step()
        ours.zero_grad()
        for row, of_row in zip(rows, gradient, strict=True):
            alone[row].grad = of_row
            theirs[row].param_groups[0]["lr"] = 0.1 / number
            theirs[row].step()
    torch.testing.assert_close(table.weight, torch.stack([row.detach() for row in alone]))
    assert int(table.step) == 5


def test_gradients_of_several_backward_passes_add_up() -> None:
    table = table_of(torch.zeros(10, 2))
    dense = torch.zeros(10, 2)
    torch.manual_seed(0)
    for rows in ([1, 4], [1, 4], [0, 4, 9], [3]):
        gradient = torch.randn(len(rows), 2)
        dense[rows] += gradient
        table.add_gradient(torch.tensor(rows), gradient)
    optimizer = RowOptimizer(table, optim(head_lr=1.0, momentum=0.0))
    assert optimizer.grad_norm_squared().item() == pytest.approx(dense.square().sum().item())
    optimizer.scale_grad_(0.5)
    optimizer.step()
    torch.testing.assert_close(table.weight, -0.5 * dense)
    optimizer.zero_grad()
    assert optimizer.grad_norm_squared().item() == 0
    optimizer.step()
    torch.testing.assert_close(table.weight, -0.5 * dense)


def test_state_of_another_optimiser_is_refused() -> None:
    table = table_of(torch.zeros(2, 2))
    ours, theirs = RowOptimizer(table, optim("lion")), RowOptimizer(table, optim("sgd"))
    refused("velocity", ours.load_state_dict, theirs.state_dict())
