"""Two processes that gather are one process with the joint batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import PROJECT
from visual_search.losses.gathering import gather_constant, gather_rows
from visual_search.losses.xbm import XbmLoss

CHILD = """
import sys
import torch
import torch.distributed as dist
from datetime import timedelta
from torch.nn.parallel import DistributedDataParallel
from tests.visual_search.losses.test_gathering import Net, batch_of, trained
from visual_search.losses.gathering import gather_constant, gather_rows

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
    timeout=timedelta(seconds=60),
)
for name in ("contrastive", "multi-similarity"):
    net = DistributedDataParallel(Net(name), broadcast_buffers=False)
    losses = trained(net, lambda step: tuple(part.chunk(2)[rank] for part in batch_of(step)))
    torch.save({"losses": losses, "state": net.module.state_dict()}, f"{folder}/{name}-{rank}.pt")
words = [str(gather_constant(torch.tensor([rank, 7])).tolist())]
rows = torch.full((2, 1), float(rank), requires_grad=True)
(gather_rows(rows) * torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * (rank + 1)).sum().backward()
words.append(str(rows.grad.flatten().tolist()))
try:
    gather_rows(torch.zeros(2 + rank, 3))
except ValueError as error:
    words.append(str(error))
print("\\n".join(words))
dist.destroy_process_group()
"""


class Net(nn.Module):
    """A linear embedder and its loss."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, 5, bias=False)
        self.loss = XbmLoss(20, 5, loss=loss, start_step=1)

    def forward(self, rows: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        loss: Tensor = self.loss(F.normalize(self.embed(rows), dim=1), labels, ids)
        return loss


def batch_of(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 3, (8,), generator=generator)
    ids = torch.randint(0, 30, (8,), generator=generator)
    return torch.randn(8, 6, generator=generator) + 0.5, labels, ids


def trained(net: nn.Module, batches: object) -> list[float]:
    assert callable(batches)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for step in range(5):
        loss = net(*batches(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("two")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(rank)],
            cwd=PROJECT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    done = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], done[0][1] + done[1][1]
    return folder, [printed for printed, _ in done]


@pytest.mark.parametrize("name", ["contrastive", "multi-similarity"])
def test_losses_weights_and_memory_are_those_of_one_process(
    two_processes: tuple[Path, list[str]], name: str
) -> None:
    folder, _ = two_processes
    net = Net(name)
    expected = trained(net, batch_of)
    first, second = (
        torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)
    )
    means = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert means == pytest.approx(expected, abs=1e-5)
    for key, value in net.state_dict().items():
        assert first["state"][key].equal(second["state"][key]), key
        assert first["state"][key].allclose(value, atol=1e-5), key
    assert int(net.loss.memory.count) == 20


def test_rows_come_in_the_order_of_ranks_and_gradients_go_back_summed(
    two_processes: tuple[Path, list[str]],
) -> None:
    _, (first, second) = two_processes
    assert first.splitlines()[0] == second.splitlines()[0] == "[0, 7, 1, 7]"
    # Rank 0 weighs the four rows 1, 2, 3, 4, rank 1 twice as much: each row gets thrice that.
    assert first.splitlines()[1] == "[3.0, 6.0]"
    assert second.splitlines()[1] == "[9.0, 12.0]"


def test_unequal_batches_are_refused(two_processes: tuple[Path, list[str]]) -> None:
    for printed in two_processes[1]:
        assert "different sizes, [2, 3]" in printed.splitlines()[2]


def test_one_process_gathers_nothing() -> None:
    rows = torch.zeros(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows
    assert not gather_constant(rows).requires_grad
