"""Two photos in one: mixup and cutmix of a batch, with the labels of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KINDS = ("none", "mixup", "cutmix", "both")


@dataclass(frozen=True)
class Mixed:
    """A batch of which each photo shows two, and how much of each.

    The loss is `weight_of_a * loss(labels_a) + (1 - weight_of_a) * loss(labels_b)`, per photo.
    """

    pixels: Tensor
    """`(N, C, H, W)`, of the type, device and memory format that came in."""
    labels_a: Tensor
    """`(N,)`, the photos' own labels."""
    labels_b: Tensor
    """`(N,)`, those of the photos mixed in."""
    weight_of_a: Tensor
    """`(N,)`, float32, 0..1; 1 where nothing is mixed in."""


class Mixer:
    """Mixes the photos of a batch with each other, with one share for the whole batch.

    mixup blends them (Zhang et al. 2018, equation 1); cutmix pastes a rectangle of one into the
    other (Yun et al. 2019, section 3.1), and its share is the area that is really left.
    """

    def __init__(self, kind: str, alpha: float = 0.4, probability: float = 1.0) -> None:
        """Choose what is done.

        Args:
            kind: none, mixup, cutmix, or both (for each batch one of them, evenly).
            alpha: the share of a photo's own pixels is drawn from Beta(alpha, alpha); above 0.
            probability: share of the batches that are mixed, 0..1.

        Raises:
            ValueError: for an unknown kind, and values outside their range.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
        if alpha <= 0 or not 0 <= probability <= 1:
            raise ValueError(f"alpha {alpha} must be above 0, probability {probability} in 0..1")
        self.kind, self.alpha, self.probability = kind, alpha, probability

    def __call__(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Mixed:
        """Mix a batch.

        Args:
            pixels: `(N, C, H, W)`, uint8 or float, on any device; not changed.
            labels: `(N,)`, on the same device.
            generator: of the draws, on the CPU; None is torch's global one.
        """
        own = torch.ones(len(pixels), dtype=torch.float32, device=pixels.device)
        if self.kind == "none":
            return Mixed(pixels, labels, labels, own)
        # One draw of torch's seeds all others: a run that goes on restores torch's state alone.
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if rng.random() >= self.probability:
            return Mixed(pixels, labels, labels, own)
        share = float(rng.beta(self.alpha, self.alpha))
        partner = torch.from_numpy(rng.permutation(len(pixels))).to(pixels.device)
        if self.kind == "mixup" or (self.kind == "both" and rng.random() < 0.5):
            mixed = blend(pixels, pixels[partner], share)
        else:
            height, width = pixels.shape[-2:]
            top, bottom, left, right = _rectangle(height, width, share, rng)
            mixed = pixels.clone()
            mixed[..., top:bottom, left:right] = pixels[partner, :, top:bottom, left:right]
            share = 1.0 - (bottom - top) * (right - left) / (height * width)
        return Mixed(mixed, labels, labels[partner], own * share)


def blend(first: Tensor, second: Tensor, share: float) -> Tensor:
    """`share * first + (1 - share) * second`, of the type of `first`, whole numbers rounded."""
    if first.is_floating_point():
        return first * share + second * (1.0 - share)
    return (first.float() * share + second.float() * (1.0 - share)).round_().to(first.dtype)


def _rectangle(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a rectangle of 1 - share of the area, cut off at the edges."""
    side = math.sqrt(1.0 - share)
    tall, wide = int(height * side), int(width * side)
    top, left = int(rng.integers(height)) - tall // 2, int(rng.integers(width)) - wide // 2
    return max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width)
