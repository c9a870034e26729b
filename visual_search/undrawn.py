"""Building a network without drawing the random weights that a checkpoint is about to replace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset(
    [
        *(getattr(Tensor, name) for name in ("uniform_", "normal_", "erfinv_", "bernoulli_")),
        *(getattr(init, name) for name in ("uniform_", "normal_", "trunc_normal_", "orthogonal_")),
        *(getattr(init, name) for name in ("xavier_uniform_", "xavier_normal_", "sparse_")),
        *(getattr(init, name) for name in ("kaiming_uniform_", "kaiming_normal_")),
    ]
)


class Undrawn(TorchFunctionMode):
    """While it is on, random initial values are left out: weights hold whatever is in memory.

    Half a minute of one core for a network of a billion weights. Constants, such as the ones of a
    norm's scale, are set as ever. Every weight has to be loaded afterwards.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
