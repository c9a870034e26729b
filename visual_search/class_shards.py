"""One large table over several processes: each holds a run of its rows."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if processes() > 1 else 0


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


def of_first_process(values: Tensor) -> Tensor:
    """Those of process 0, in the same tensor."""
    if processes() > 1:
        dist.broadcast(values, 0)
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
