"""A table of class centres over several processes, and its optimisers, which touch some rows.

A step brings gradients for some of the rows; only these rows, and their momentum, are read and
written, a block at a time. Rows without a gradient stay as they are: their momentum does not fade
and they do not decay until their turn comes (as in Partial FC). When all rows have gradients in
every step, both optimisers are those of `torch.optim`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.common.processes import own_rank, processes

# Rows in one go: with their momentum they are a few megabytes.
_BLOCK = 2048


class RowTable(nn.Module):
    """This process's rows of a table, the gradients of some of them, and a count of steps."""

    weight: Tensor
    step: Tensor

    def __init__(self, weight: Tensor) -> None:
        """
        Args:
            weight: `(rows, d)`, float32.
        """
        super().__init__()
        # Buffers: a main optimiser that asks for the parameters must not find them.
        self.register_buffer("weight", weight)
        self.register_buffer("step", torch.tensor(0))
        self.rows: Tensor | None = None
        self.gradient: Tensor | None = None

    def add_gradient(self, rows: Tensor, gradient: Tensor) -> None:
        """Add to what earlier backward passes brought since the last :meth:`clear`.

        Args:
            rows: `(R,)`, int64, rising; numbers of own rows.
            gradient: `(R, d)`; kept, not copied.
        """
        if self.rows is None or self.gradient is None:
            self.rows, self.gradient = rows, gradient
        elif torch.equal(self.rows, rows):
            self.gradient += gradient
        else:
            union = torch.cat([self.rows, rows]).unique()
            together = gradient.new_zeros(len(union), gradient.shape[1])
            together.index_copy_(0, torch.searchsorted(union, self.rows), self.gradient)
            together.index_add_(0, torch.searchsorted(union, rows), gradient)
            self.rows, self.gradient = union, together

    def clear(self) -> None:
        """Drop the gradients."""
        self.rows = self.gradient = None


class RowOptimizer(ABC):
    """What the optimisers of a :class:`RowTable` share; a step is :meth:`step`.

    Attributes:
        lr: learning rate; may be set before every step.
        weight_decay: of the updated rows.
    """

    def __init__(self, table: RowTable, lr: float, weight_decay: float) -> None:
        if lr < 0 or weight_decay < 0:
            raise UserError(
                f"the class matrix has a learning rate of {lr} and a weight decay of "
                f"{weight_decay}; write 0 or more for each"
            )
        self.table, self.lr, self.weight_decay = table, lr, weight_decay
        self.state: dict[str, Tensor] = {}

    @abstractmethod
    def _update(self, weight: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        """Change a block of rows and their state in place."""

    @torch.no_grad()
    def step(self) -> None:
        """Update the rows that have gradients; the gradients stay until :meth:`zero_grad`."""
        table = self.table
        for rows, gradient in self._blocks():
            weight = table.weight[rows]
            state = {name: values[rows] for name, values in self.state.items()}
            self._update(weight, gradient.to(weight.dtype), state)
            table.weight.index_copy_(0, rows, weight)
            for name, values in state.items():
                self.state[name].index_copy_(0, rows, values)
        table.step += 1

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.table.rows is not None and self.table.gradient is not None:
            yield from zip(
                self.table.rows.split(_BLOCK), self.table.gradient.split(_BLOCK), strict=True
            )

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.table.clear()

    def grad_norm_squared(self) -> Tensor:
        """Sum of squares of the gradients of all processes, a scalar; all have to call it."""
        total = torch.zeros((), device=self.table.weight.device)
        for _, gradient in self._blocks():
            total += gradient.float().square().sum()
        return sum_over_processes(total)

    def scale_grad_(self, factor: float | Tensor) -> None:
        """Multiply the gradients, for clipping or for undoing a loss scale."""
        if self.table.gradient is not None:
            self.table.gradient *= factor

    def state_dict(self) -> dict[str, Tensor]:
        """This process's state, for the same number of processes."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` of this process returned."""
        if state.keys() != self.state.keys():
            raise UserError(
                f"the saved optimiser of the class matrix has {', '.join(sorted(state))}, this "
                f"one {', '.join(sorted(self.state))}; continue with the optimiser it was "
                "trained with, or start the phase anew"
            )
        for name, values in self.state.items():
            values.copy_(state[name])


class RowSGD(RowOptimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    State: `velocity`, `(rows, d)`, float32: as large as the table.
    """

    def __init__(
        self, table: RowTable, lr: float, weight_decay: float = 0.0, *, momentum: float = 0.9
    ) -> None:
        """
        Args:
            table: whose rows it updates.
            lr: learning rate.
            weight_decay: times the row is added to its gradient.
            momentum: 0..1; 0 keeps no state.
        """
        super().__init__(table, lr, weight_decay)
        self.momentum = momentum
        if momentum:
            self.state["velocity"] = torch.zeros_like(table.weight, dtype=torch.float32)

    def _update(self, weight: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        change = gradient.add(weight, alpha=self.weight_decay) if self.weight_decay else gradient
        if self.momentum:
            change = state["velocity"].mul_(self.momentum).add_(change)
        weight.add_(change, alpha=-self.lr)


class RowAdamW(RowOptimizer):
    """AdamW, as `torch.optim.AdamW`, with a count of updates for each row.

    The bias correction follows a row's own count: with the number of steps instead, a row that
    comes up for the first time late in the training would take steps three times too long.

    State: `mean` and `square`, `(rows, d)`, and `updates`, `(rows,)`, float32.
    """

    def __init__(
        self,
        table: RowTable,
        lr: float,
        weight_decay: float = 0.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """
        Args:
            table: whose rows it updates.
            lr: learning rate.
            weight_decay: times `lr`, the share of itself that an updated row loses.
            betas: how slowly the means of gradients and of their squares move, 0..1.
            eps: added to the root of the mean square.
        """
        super().__init__(table, lr, weight_decay)
        self.betas, self.eps = betas, eps
        for name in ("mean", "square"):
            self.state[name] = torch.zeros_like(table.weight, dtype=torch.float32)
        self.state["updates"] = torch.zeros(len(table.weight), device=table.weight.device)

    def _update(self, weight: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        slow, slower = self.betas
        updates = state["updates"].add_(1.0)[:, None]
        mean = state["mean"].lerp_(gradient, 1.0 - slow)
        square = state["square"].mul_(slower).addcmul_(gradient, gradient, value=1.0 - slower)
        root = (square / (1.0 - slower**updates)).sqrt_().add_(self.eps)
        weight.mul_(1.0 - self.lr * self.weight_decay)
        weight.addcdiv_(mean / (1.0 - slow**updates), root, value=-self.lr)


def shard_range(total: int, rank: int | None = None) -> tuple[int, int]:
    """The run `start, stop` of `total` things that a process holds; this one's by default."""
    size = -(-total // processes())
    start = min(size * (own_rank() if rank is None else rank), total)
    return start, min(start + size, total)


def sum_over_processes(values: Tensor) -> Tensor:
    """Their sum over processes, without gradient, in the same tensor."""
    if processes() > 1:
        dist.all_reduce(values)
    return values


def collect_shards(shard: Tensor, total: int, per: int = 1) -> Tensor | None:
    """The whole table on process 0, in main memory; None on the others. All have to call it.

    Args:
        shard: `(own, ...)`, the rows of this process.
        total: things in the whole table, dealt by :func:`shard_range`.
        per: rows of each thing.
    """
    if processes() == 1:
        return shard.detach().cpu().clone()
    if own_rank() > 0:
        if len(shard):
            dist.send(shard.detach().contiguous(), 0)
        return None
    whole = torch.empty((total * per, *shard.shape[1:]), dtype=shard.dtype)
    whole[: len(shard)] = shard.detach()
    for rank in range(1, processes()):
        start, stop = (per * edge for edge in shard_range(total, rank))
        if stop > start:
            part = torch.empty_like(shard[:1]).repeat(stop - start, *[1] * (shard.dim() - 1))
            dist.recv(part, rank)
            whole[start:stop] = part
    return whole
