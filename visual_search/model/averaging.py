"""Averages of the weights over a training: they often rank better than the last weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.common.files import written_atomically


class ExponentialAverage:
    """A moving average of a module's trained parameters, kept in float32; buffers are copied.

    What needs no gradient when the average is made is taken to stay as it is.

    Each update moves the average by `1 - d` of the way to the weights, where `d` is
    `min(decay, (1 + t) / (10 + t))` at update t = 0, 1, …: as in TensorFlow's
    `ExponentialMovingAverage`, so that the random start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """
        Args:
            module: the average starts at its weights.
            decay: 0 to below 1; 0.999 averages over about the last 1000 updates.
        """
        self.decay, self.updates = decay, 0
        self.averages = {
            name: parameter.detach().float().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        rate = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        found = dict(module.named_parameters())
        names = list(self.averages)
        if not names:
            return
        parameters = [found[name] for name in names]
        device = parameters[0].device
        averages = [self.averages[name] for name in names]
        if averages[0].device != device:
            averages = [average.to(device) for average in averages]
            self.averages = dict(zip(names, averages, strict=True))
        torch._foreach_lerp_(averages, [p.detach().float() for p in parameters], rate)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Within it `module` has the averaged parameters; after it, its own again, bit by bit.

        The module's buffers stay as they are: they are the current ones either way.
        """
        found = dict(module.named_parameters())
        kept = {name: found[name].detach().clone() for name in self.averages}
        try:
            _fill(module, self.averages)
            yield
        finally:
            _fill(module, kept)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for :meth:`load_state_dict`."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as if the updates of `state` had been made here."""
        self.updates = int(state["updates"])
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])


@torch.no_grad()
def _fill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    found = dict(module.named_parameters())
    for name, value in values.items():
        found[name].copy_(value)


class WeightSoup:
    """The uniform average of the last snapshots of a model's tensors.

    Wortsman et al., "Model soups" (ICML 2022), section 2, algorithm "uniform soup", over
    snapshots of one training.
    """

    def __init__(self, last: int, folder: Path | None = None) -> None:
        """
        Args:
            last: how many snapshots are averaged, at least 1; older ones are forgotten.
            folder: keep them there, a .safetensors file each; None keeps them in memory, and
                then :meth:`state_dict` is as large as all of them.
        """
        self.folder, self.added, self.last = folder, 0, last
        self.held: deque[dict[str, Tensor]] = deque(maxlen=last)
        self._first_needed = 0

    def __len__(self) -> int:
        return min(self.added, self.last)

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Take a snapshot of a module's `state_dict()`."""
        tensors = {name: value.detach().cpu().clone() for name, value in state.items()}
        if self.folder is None:
            self.held.append(tensors)
        else:
            from safetensors.torch import save_file

            with written_atomically(self._file(self.added)) as temporary:
                save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        self.added += 1

    def average(self) -> dict[str, Tensor]:
        """The mean of each tensor, on the CPU; of those that are not floats, the newest.

        Running statistics of batch norms are averaged like weights.

        Raises:
            ValueError: when there is no snapshot.
        """
        if not self.added:
            raise ValueError("no snapshot was added")
        total: dict[str, Tensor] = {}
        kinds: dict[str, torch.dtype] = {}
        for snapshot in self._snapshots():
            for name, value in snapshot.items():
                kinds[name] = value.dtype
                if value.is_floating_point():
                    total[name] = total[name] + value.double() if name in total else value.double()
                else:
                    total[name] = value
        return {
            name: (value / len(self)).to(kinds[name]) if kinds[name].is_floating_point else value
            for name, value in total.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for :meth:`load_state_dict`.

        With a folder it holds no tensors, and files that neither this state nor the one before
        it needs are removed: whichever of the two a killed run finds whole, its files are there.
        """
        if self.folder is not None:
            for path in self.folder.glob("snapshot-*.safetensors"):
                if int(path.stem.partition("-")[2]) < self._first_needed:
                    path.unlink()
            self._first_needed = self.added - len(self)
        return {"added": self.added, "held": list(self.held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; later snapshots in the folder are written anew."""
        self.added = int(state["added"])
        self.held = deque((dict(tensors) for tensors in state["held"]), maxlen=self.last)
        self._first_needed = self.added - len(self)

    def _snapshots(self) -> Iterator[Mapping[str, Tensor]]:
        if self.folder is None:
            yield from self.held
            return
        from safetensors.torch import load_file

        for number in range(self.added - len(self), self.added):
            yield load_file(self._file(number))

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"snapshot-{number}.safetensors"
