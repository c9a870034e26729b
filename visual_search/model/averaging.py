"""Averages of the weights over a training: they often rank better than the last weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.model.checkpoint import save_weights


class ExponentialAverage:
    """A moving average of a module's trained parameters; buffers are those of the module.

    What needs no gradient when the average is made is taken to stay as it is.

    Each update moves the average by `1 - d` of the way to the weights, where `d` is
    `min(decay, (1 + t) / (10 + t))` at update t = 0, 1, …: as in TensorFlow's
    `ExponentialMovingAverage`, so that the random start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """
        Args:
            module: the average starts at its weights and follows them.
            decay: 0 to below 1; 0.999 averages over about the last 1000 updates.
        """
        self.decay, self.updates = decay, 0
        self.weights: list[Tensor] = [
            weight for weight in module.parameters() if weight.requires_grad
        ]
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimiser step."""
        rate = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if self.averages:
            torch._foreach_lerp_(self.averages, self.weights, rate)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it the module has the averages; after it, its own weights again, bit by bit.

        The module's buffers stay as they are: they are the current ones either way.
        """
        kept = [weight.detach().clone() for weight in self.weights]
        try:
            _fill(self.weights, self.averages)
            yield
        finally:
            _fill(self.weights, kept)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for :meth:`load_state_dict`."""
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as if the updates of `state` had been made here."""
        self.updates = int(state["updates"])
        kept = state["averages"]  # by name in runs that an earlier version began
        _fill(self.averages, list(kept.values()) if isinstance(kept, Mapping) else kept)


@torch.no_grad()
def _fill(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def mean_state(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor of some `state_dict()`s; of those that are not floats, the last.

    Running statistics of batch norms are averaged like weights.
    """
    total: dict[str, Tensor] = {}
    count, last = 0, dict[str, Tensor]()
    for state in states:
        count, last = count + 1, dict(state)
        for name, value in state.items():
            if value.is_floating_point():
                total[name] = total[name] + value.double() if name in total else value.double()
    means = {name: (value / count).to(last[name].dtype) for name, value in total.items()}
    return {**last, **means}


class WeightSoup:
    """The uniform average of the last snapshots of a model's tensors, a file each.

    Wortsman et al., "Model soups" (ICML 2022), section 2, algorithm "uniform soup", over
    snapshots of one training.
    """

    def __init__(self, last: int, folder: Path) -> None:
        """
        Args:
            last: how many snapshots are averaged, at least 1; older ones are forgotten.
            folder: where they are kept.
        """
        self.folder, self.added, self.last = folder, 0, last
        self._first_needed = 0

    def __len__(self) -> int:
        return min(self.added, self.last)

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Take a snapshot of a module's `state_dict()`."""
        save_weights(self._file(self.added), state)
        self.added += 1

    def average(self) -> dict[str, Tensor]:
        """:func:`mean_state` of the snapshots, on the CPU."""
        from safetensors.torch import load_file

        numbers = range(self.added - len(self), self.added)
        return mean_state(load_file(self._file(number)) for number in numbers)

    def state_dict(self) -> dict[str, Any]:
        """How many there were; files that neither this state nor the one before needs are removed.

        Whichever of the two a killed run finds whole, its files are there.
        """
        for path in self.folder.glob("snapshot-*.safetensors"):
            if int(path.stem.partition("-")[2]) < self._first_needed:
                path.unlink()
        self._first_needed = self.added - len(self)
        return {"added": self.added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; later snapshots in the folder are written anew."""
        self.added = int(state["added"])
        self._first_needed = self.added - len(self)

    def _file(self, number: int) -> Path:
        return self.folder / f"snapshot-{number}.safetensors"
