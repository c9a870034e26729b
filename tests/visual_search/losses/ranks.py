"""Two ranks as threads of this process, by the process group that torch's own tests use.

Real processes train in `tests/visual_search/test_two_processes.py`; here the losses meet in
milliseconds.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def on_two_ranks(act: Callable[[int], Value]) -> list[Value]:
    """What `act(rank)` gives on each of two ranks, which may call collectives.

    Raises:
        BaseException: the first that a rank raised.
    """
    from torch.testing._internal.distributed import multi_threaded_pg as threaded

    c10d: Any = torch._C._distributed_c10d
    found: list[Any] = [None, None]
    raised: list[BaseException] = []

    def rank_of_two(rank: int) -> None:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=2, store=store)
            found[rank] = act(rank)
        except BaseException as error:  # the other rank waits for this one
            raised.append(error)
            threaded.ProcessLocalGroup.exception_handle(error)
        finally:
            dist.destroy_process_group()

    c10d._set_thread_isolation_mode(True)
    threaded._install_threaded_pg()
    threaded.ProcessLocalGroup.reset()
    store = dist.HashStore()
    try:
        ranks = [threading.Thread(target=rank_of_two, args=(rank,)) for rank in range(2)]
        for thread in ranks:
            thread.start()
        for thread in ranks:
            thread.join(60)
    finally:
        threaded._uninstall_threaded_pg()
        c10d._set_thread_isolation_mode(False)
    assert not torch.distributed.is_initialized()
    if raised:
        raise raised[0]
    return found
