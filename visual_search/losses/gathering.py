"""What processes that train together share: rows of a batch, sums, and parts of a table."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def processes() -> int:
    """How many processes train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def _all_gather(rows: Tensor) -> Tensor:
    rows, count = rows.contiguous(), processes()
    own = torch.tensor([len(rows)], device=rows.device)
    lengths = [torch.empty_like(own) for _ in range(count)]
    dist.all_gather(lengths, own)
    sizes = torch.cat(lengths).tolist()
    if len(set(sizes)) > 1:
        raise ValueError(f"processes hold batches of different sizes, {sizes}; drop the last one")
    parts = [torch.empty_like(rows) for _ in range(count)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.length = len(rows)
        return _all_gather(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process's loss depends on every process's rows. Summed as a whole, since gloo has
        # no reduce-scatter; what is sent is a batch of embeddings, small next to a model.
        total = gradient.clone(memory_format=torch.contiguous_format)
        return own_rows(sum_over_processes(total), ctx.length)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to each.

    The gradient of a process's rows is the sum over processes of the gradients of their losses.
    All processes have to call this, and its backward, in the same order.

    Args:
        rows: `(n, ...)`, as many in each process.

    Returns:
        `(processes * n, ...)`; `rows` itself where there is one process.

    Raises:
        ValueError: when processes hold different numbers of rows.
    """
    return rows if processes() == 1 else _GatherRows.apply(rows)


def own_rows(joint: Tensor, count: int) -> Tensor:
    """Of the rows of all processes, the `count` of this one."""
    return joint.narrow(0, own_rank() * count, count)


@torch.no_grad()
def gather_constant(rows: Tensor) -> Tensor:
    """As :func:`gather_rows`, of any type, without a gradient."""
    rows = rows.detach()
    return rows if processes() == 1 else _all_gather(rows)


def sum_over_processes(values: Tensor) -> Tensor:
    """Their sum over processes, without gradient, in the same tensor."""
    if processes() > 1:
        dist.all_reduce(values)
    return values


def shard_range(total: int, rank: int | None = None) -> tuple[int, int]:
    """The run `start, stop` of `total` things that a process holds; this one's by default."""
    size = -(-total // processes())
    start = min(size * (own_rank() if rank is None else rank), total)
    return start, min(start + size, total)


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
            part = shard.new_empty(stop - start, *shard.shape[1:])
            dist.recv(part, rank)
            whole[start:stop] = part
    return whole
