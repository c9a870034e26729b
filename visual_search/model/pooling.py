"""From the last feature map, or the last tokens, to one vector an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError


class GeM(nn.Module):
    """Generalised mean of positions, with a learnt exponent.

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation" (TPAMI 2018),
    equation 8: `(mean of x ** p) ** (1 / p)` for each channel; p = 1 is the average, a large p
    comes near the maximum. What is below `eps` counts as `eps`: the power needs it positive.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        """
        Args:
            p: the exponent that training starts from, above 0.
            eps: the smallest value that counts.
        """
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`(N, positions, channels)` to `(N, channels)`, in float32 and back."""
        # In half precision, x ** 3 of a small feature is 0, and its root's slope infinite.
        with torch.autocast(x.device.type, enabled=False):
            p = self.p.float()
            powers = x.float().clamp(min=self.eps).pow(p)
            return powers.mean(dim=1).pow(1.0 / p).to(x.dtype)


class Average(nn.Module):
    """The mean over the positions."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, positions, channels)` to `(N, channels)`."""
        return x.mean(dim=1)


class MapPooling(nn.Module):
    """Pooling of a feature map, in the place of a convolutional network's own.

    What follows it there, a norm or a projection that was trained on pooled features, stays.
    """

    def __init__(self, pool: nn.Module, channels_last: bool, flatten: bool) -> None:
        """
        Args:
            pool: of `(N, positions, channels)`.
            channels_last: whether maps come as `(N, H, W, C)` rather than `(N, C, H, W)`.
            flatten: whether `(N, C)` leaves, or the map with one position.
        """
        super().__init__()
        self.pool, self.channels_last, self.flatten = pool, channels_last, flatten

    def forward(self, x: Tensor) -> Tensor:
        """Of a feature map."""
        positions = x.flatten(1, 2) if self.channels_last else x.flatten(2).transpose(1, 2)
        pooled = self.pool(positions)
        if self.flatten:
            return pooled
        return pooled[:, None, None, :] if self.channels_last else pooled[:, :, None, None]


class TokenPooling(nn.Module):
    """A network that gives tokens, or a map, and their pooling."""

    def __init__(self, trunk: nn.Module, kind: str, prefix: int, name: str) -> None:
        """
        Args:
            trunk: images to tokens `(N, prefix + patches, channels)`, or to `(N, channels, H, W)`.
            kind: avg or gem, of the patches' tokens; cls, the first token.
            prefix: class and register tokens in front of the patches'.
            name: of the network, for messages.

        Raises:
            UserError: for `cls` without a class token.
        """
        super().__init__()
        if kind == "cls" and prefix == 0:
            raise no_class_token(name)
        self.trunk, self.prefix = trunk, prefix
        self.pool = None if kind == "cls" else POOLINGS[kind]()

    def forward(self, images: Tensor) -> Tensor:
        """Images `(N, 3, H, W)` to features `(N, channels)`."""
        tokens = self.trunk(images)
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        return tokens[:, 0] if self.pool is None else self.pool(tokens[:, self.prefix :])


def no_class_token(name: str) -> UserError:
    """For a network of this name that is to be pooled by one."""
    return UserError(f"{name} has no class token: set backbone.pooling to default, avg or gem")


def pooled_maps(network: nn.Module, kind: str, name: str) -> bool:
    """Replace a timm network's pooling of its last feature map, where it has one such layer.

    Args:
        network: changed in place.
        kind: avg or gem.
        name: of the network, for messages.

    Returns:
        Whether it had one.

    Raises:
        UserError: for `cls`, which a feature map has not.
    """
    from timm.layers import SelectAdaptivePool2d

    found = [
        (path, part)
        for path, part in network.named_modules()
        if isinstance(part, SelectAdaptivePool2d)
        and not part.is_identity()
        and not path.startswith("patch_embed.")  # a hybrid's, which it leaves out
    ]
    if len(found) != 1:
        return False
    path, own = found[0]
    if kind == "cls":
        raise no_class_token(name)
    parent, _, last = path.rpartition(".")
    setattr(network.get_submodule(parent), last, MapPooling(POOLINGS[kind](), *_layout(own)))
    return True


def _layout(own: Any) -> tuple[bool, bool]:
    """Whether a timm pooling layer takes channels last, and whether it flattens."""
    example = torch.zeros(1, 2, 3, 5)
    pooled = own(example)
    return pooled.shape[-1] == 5 and pooled.shape[1] != 2, pooled.ndim == 2


POOLINGS: dict[str, Callable[[], nn.Module]] = {"avg": Average, "gem": GeM}
"""Poolings of positions, by name; beside them there are `default` and `cls`."""
