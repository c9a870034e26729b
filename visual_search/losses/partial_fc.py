"""Margin softmax over a part of the classes in each step, for 100,000 classes and more.

Partial FC: An et al., "Partial FC: Training 10 Million Identities on a Single Machine" (ICCV
Workshops 2021) and "Killing Two Birds with One Stone" (CVPR 2022). A step compares with its own
classes and a random share of the others. The class matrix is no parameter: the rows of a step go
to an optimiser of :mod:`visual_search.losses.partial_fc`.

With several processes each holds a run of the classes, all of a class's centres together. Every
process compares the embeddings of all processes with its own classes; the softmax is summed over
processes. A step, first weights and sample included, is that of one process with the joint batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.config import MarginConfig, OptimConfig
from visual_search.losses.gathering import collect_shards, gather_constant, sum_over_processes
from visual_search.losses.margin_head import MarginHead, generator_of
from visual_search.losses.margin_softmax import Shard

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
        self.gradient: Tensor | None = None
        """`(rows, d)`, sparse: of the rows that have any."""

    def add_gradient(self, rows: Tensor, gradient: Tensor) -> None:
        """Add to what earlier backward passes brought since the last update.

        Args:
            rows: `(R,)`, int64, rising; numbers of own rows.
            gradient: `(R, d)`.
        """
        new = torch.sparse_coo_tensor(
            rows[None], gradient, self.weight.shape, is_coalesced=True, check_invariants=False
        )
        self.gradient = new if self.gradient is None else (self.gradient + new).coalesce()


class RowOptimizer:
    """Moves the rows of a :class:`RowTable` that have gradients.

    By SGD with Nesterov's momentum where the other weights have it, as `torch.optim.SGD`; beside
    every other optimiser by AdamW, as `torch.optim.AdamW`, but with a count of updates for each
    row: by the number of steps, a row that comes up for the first time late in the training would
    take steps three times too long.

    It stays ours beside torch.optim.SparseAdam, which has neither weight decay nor a row's own
    bias correction, and takes 1.2 times as long for 100,000 of a million rows of 64 (one core).

    Attributes:
        lr: learning rate; may be set before every step.
        state: float32; of SGD `velocity`, `(rows, d)`, unless the momentum is 0; of AdamW `mean`
            and `square`, `(rows, d)`, and `updates`, `(rows,)`.
    """

    def __init__(self, table: RowTable, optim: OptimConfig) -> None:
        """
        Args:
            table: whose rows it updates.
            optim: name, `head_lr`, weight decay, momentum and betas.
        """
        self.table, self.optim, self.lr = table, optim, optim.head_lr
        self._update = _by_sgd if optim.name == "sgd" else _by_adamw
        of_sgd = ("velocity",) if optim.momentum else ()
        names = of_sgd if optim.name == "sgd" else ("mean", "square")
        self.state = {name: torch.zeros_like(table.weight, dtype=torch.float32) for name in names}
        if optim.name != "sgd":
            self.state["updates"] = torch.zeros(len(table.weight), device=table.weight.device)

    @torch.no_grad()
    def step(self) -> None:
        """Update the rows that have gradients; the gradients stay until :meth:`zero_grad`."""
        table = self.table
        for rows, gradient in self._blocks():
            weight = table.weight[rows]
            state = {name: values[rows] for name, values in self.state.items()}
            self._update(weight, gradient.to(weight.dtype), state, self.lr, self.optim)
            table.weight.index_copy_(0, rows, weight)
            for name, values in state.items():
                self.state[name].index_copy_(0, rows, values)
        table.step += 1

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        if (gradient := self.table.gradient) is not None:
            rows, values = gradient.indices()[0], gradient.values()
            yield from zip(rows.split(_BLOCK), values.split(_BLOCK), strict=True)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.table.gradient = None

    def grad_norm_squared(self) -> Tensor:
        """Sum of squares of the gradients of all processes, a scalar; all have to call it."""
        total = torch.zeros((), device=self.table.weight.device)
        for _, gradient in self._blocks():
            total += gradient.float().square().sum()
        return sum_over_processes(total)

    def scale_grad_(self, factor: float | Tensor) -> None:
        """Multiply the gradients, for clipping or for undoing a loss scale."""
        if self.table.gradient is not None:
            self.table.gradient.values().mul_(factor)

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


def _by_sgd(
    weight: Tensor, gradient: Tensor, state: dict[str, Tensor], lr: float, optim: OptimConfig
) -> None:
    """Change a block of rows and their state in place."""
    change = gradient.add(weight, alpha=optim.weight_decay) if optim.weight_decay else gradient
    if optim.momentum:
        velocity = state["velocity"].mul_(optim.momentum).add_(change)
        change = change.add(velocity, alpha=optim.momentum)
    weight.add_(change, alpha=-lr)


def _by_adamw(
    weight: Tensor, gradient: Tensor, state: dict[str, Tensor], lr: float, optim: OptimConfig
) -> None:
    """Change a block of rows and their state in place."""
    slow, slower = optim.betas
    updates = state["updates"].add_(1.0)[:, None]
    mean = state["mean"].lerp_(gradient, 1.0 - slow)
    square = state["square"].mul_(slower).addcmul_(gradient, gradient, value=1.0 - slower)
    root = (square / (1.0 - slower**updates)).sqrt_().add_(1e-8)
    weight.mul_(1.0 - lr * optim.weight_decay)
    weight.addcdiv_(mean / (1.0 - slow**updates), root, value=-lr)


def sampled_classes(classes: int, share: float, seed: int, step: int, labels: Tensor) -> Tensor:
    """Which classes enter a step: `(classes,)`, bool, on the labels' device.

    Class c does if it is a row's label, or if u(seed, step, c) < share, u being uniform. It is
    drawn in main memory for all classes, so every process and every device gets the same.
    """
    chosen = (torch.rand(classes, generator=generator_of(seed, step)) < share).to(labels.device)
    chosen[labels] = True
    return chosen


class SampledMarginHead(MarginHead):
    """:class:`MarginHead` over a share of the classes in each step.

    In training the loss is over the classes of :func:`sampled_classes`, out of training over all.
    The sample changes with `table.step`, the count of updates: all backward passes of one update
    see the same. The gradient of the class matrix goes to `table`, as that of the mean over
    processes, whether or not the embeddings need any.

    The state differs between processes: keep the module out of what synchronises modules
    (DistributedDataParallel). What moves in its margin is the same everywhere.
    """

    joint = True

    def __init__(self, dimension: int, counts: Tensor, config: MarginConfig, seed: int = 0) -> None:
        """
        Args:
            dimension: width of the embeddings.
            counts: `(classes,)`, training images of each class, of all processes together.
            config: as :class:`MarginHead`, and the share of the other classes
                that enters a step; a label is smoothed over the classes of the step.
            seed: of the first centres, which are those of MarginHead, and of the samples.
        """
        super().__init__(dimension, counts, config, seed)
        self.share, self.seed = config.sampled_share, seed

    def _hold(self, centers: Tensor) -> None:
        self.table = RowTable(centers)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """`(own classes * centers, dimension)`: this process's centres."""
        return self.table.weight

    def row_optimizer(self, optim: OptimConfig) -> RowOptimizer:
        """What moves the centres."""
        return RowOptimizer(self.table, optim)

    def own_state_names(self) -> list[str]:
        """All: each process has its own part of the class matrix."""
        return list(self.state_dict())

    def full_state(self) -> dict[str, Tensor]:
        """As :meth:`MarginHead.full_state`; empty on the other processes."""
        weight = collect_shards(self.weight, self.classes, self.centers)
        if weight is None:
            return {}
        rest = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        return {**rest, "table.weight": weight}

    def forward(self, embeddings: Tensor, labels: Tensor, observes: bool = True) -> Tensor:
        """The loss of each row, `(N,)`, float32. All processes have to call it together.

        Args:
            embeddings: `(N, dimension)`, not normalised; N is the same in every process.
            labels: `(N,)`, int64, 0..classes-1.
            observes: as :meth:`MarginHead.forward`.
        """
        labels = gather_constant(labels)
        picked, columns, count = self._sample(labels)

        def add_gradient(of_centers: Tensor) -> None:
            self.table.add_gradient(self._rows(picked), of_centers)

        shard = Shard(count, add_gradient)
        return self._losses(
            embeddings, self.weight, labels, columns, observes=observes, picked=picked, shard=shard
        )

    def _sample(self, labels: Tensor) -> tuple[Tensor | None, Tensor, int]:
        """Own classes of this step, counted from the first own one (None: all of them);

        of each label its column among them, -1 for other processes' labels; and how many classes
        all processes compare with.
        """
        own = (labels >= self.start) & (labels < self.stop)
        if not self.training or self.share == 1.0:
            return None, torch.where(own, labels - self.start, -1), self.classes
        step = int(self.table.step)
        chosen = sampled_classes(self.classes, self.share, self.seed, step, labels)
        before = chosen[: self.start].sum()
        columns = chosen.cumsum(0)[labels] - 1 - before
        picked = chosen[self.start : self.stop].nonzero().squeeze(1)
        return picked, torch.where(own, columns, -1), int(chosen.sum())

    def _rows(self, picked: Tensor | None) -> Tensor:
        """The rows of the table that the centres of these own classes stand in."""
        within = torch.arange(self.centers, device=self.weight.device)
        if picked is None:
            picked = torch.arange(self.stop - self.start, device=self.weight.device)
        return (picked[:, None] * self.centers + within).flatten()
