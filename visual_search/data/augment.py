"""Augmentation: from a decoded image to the square that training sees; mixup and cutmix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from visual_search.data.images import DCT_OVERSAMPLING, letterbox

BICUBIC, BILINEAR = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR
GREY = 127


def build_augmentation(
    name: str, size: int, random_erasing: float = 0.0, views: Sequence[str] = ("squash",)
) -> Callable[[Image.Image], Tensor]:
    """A function from an RGB image to pixels `(3, size, size)`, uint8, 0..255.

    Random draws come from torch's global generator.

    Args:
        name: a key of :data:`AUGMENTATIONS`.
        size: side of the square in pixels.
        random_erasing: share of the images in which a rectangle of 2 to 33 % of the area is
            grey (Zhong et al. 2020), 0..1.
        views: of `embedding.views`; of several, each image shows one, drawn at random.

    Raises:
        KeyError: for an unknown name.
    """
    steps = AUGMENTATIONS[name](size)
    if tuple(views) != ("squash",):
        steps = [_OneView(tuple(views), DCT_OVERSAMPLING * size), *steps]
    steps += [v2.Resize((size, size), BICUBIC), v2.PILToTensor()]
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing, value=[GREY] * 3))
    return v2.Compose(steps)


def _larger(size: int) -> v2.Resize:
    """The square from which the image is cut, or that AutoAugment and its kin work on."""
    larger = round(size * 1.15)
    return v2.Resize((larger, larger), BICUBIC)


def _autoaugment() -> v2.AutoAugment:
    """AutoAugment's ImageNet policy (Cubuk et al. 2019)."""
    return v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)


def _phone(size: int) -> list[Callable]:
    """What turns a studio image towards a phone photo: loose crops, light, blur, AutoAugment."""
    larger = round(size * 1.15)
    return [
        v2.RandomResizedCrop(
            (larger, larger), scale=(0.5, 1.0), ratio=(0.6, 1.7), interpolation=BICUBIC
        ),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.3, 0.04)], p=0.8),
        _autoaugment(),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.3, 2.0))], p=0.25),
        _MostlyRotate(p=0.4, degrees=20.0),
    ]


class _OneView(torch.nn.Module):
    """One of the views that embedding sees: the image as it is, or whole on a white square."""

    def __init__(self, views: tuple[str, ...], size: int) -> None:
        super().__init__()
        self.views, self.size = views, size

    def forward(self, image: Image.Image) -> Image.Image:
        drawn = int(torch.randint(len(self.views), ())) if len(self.views) > 1 else 0
        if self.views[drawn] == "squash":  # the last step does that
            return image
        return Image.fromarray(letterbox(np.array(image), self.size))


class _MostlyRotate(torch.nn.Module):
    """Now and then a tilted phone; the corners are filled with the image's own mean colour."""

    def __init__(self, p: float, degrees: float) -> None:
        super().__init__()
        self.p, self.degrees = p, degrees

    def forward(self, image: Image.Image) -> Image.Image:
        if torch.rand(()) >= self.p:
            return image
        angle = float(torch.empty(()).uniform_(-self.degrees, self.degrees))
        mean = tuple(int(value) for value in np.asarray(image).reshape(-1, 3).mean(axis=0))
        return image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=mean)


AUGMENTATIONS: dict[str, Callable[[int], list[Callable]]] = {
    # The square resize alone: what validation and the submission do.
    "none": lambda size: [],
    # As the challenge's winner had it.
    "default": lambda size: [_larger(size), _autoaugment()],
    "flip": lambda size: [v2.RandomHorizontalFlip()],
    "plain": lambda size: [
        _larger(size),
        v2.RandomCrop(size),
        v2.RandomHorizontalFlip(),
        # Without hue, which costs as much as all the rest.
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ],
    "autoaugment": lambda size: [_larger(size), v2.RandomHorizontalFlip(), _autoaugment()],
    # Cubuk et al. 2020: two operations of magnitude 9 of 30.
    "randaugment": lambda size: [
        *(_larger(size), v2.RandomHorizontalFlip()),
        v2.RandAugment(2, 9, interpolation=BILINEAR),
    ],
    # Müller and Hutter 2021: one operation of any magnitude.
    "trivialaugment": lambda size: [
        *(_larger(size), v2.RandomHorizontalFlip()),
        v2.TrivialAugmentWide(interpolation=BILINEAR),
    ],
    "phone": _phone,
}
"""The steps in front of the last resize by name, each for the side of the square in pixels."""


class Mixed(NamedTuple):
    """A batch of which each image shows two, and how much of each.

    The loss is `weight_of_a * loss(labels) + (1 - weight_of_a) * loss(labels_b)`, per image.
    """

    pixels: Tensor
    """`(N, C, H, W)`, of the type, device and memory format that came in."""
    labels_b: Tensor
    """`(N,)`, the labels of the images mixed in."""
    weight_of_a: Tensor
    """`(N,)`, float32, 0..1, of the images' own labels; 1 where nothing is mixed in."""


class Mixer:
    """Mixes the images of a batch with each other, with one share for the whole batch.

    mixup blends them (Zhang et al. 2018, equation 1); cutmix pastes a rectangle of one into the
    other (Yun et al. 2019, section 3.1), and its share is the area that is really left.
    """

    def __init__(self, kind: str, alpha: float = 0.4, probability: float = 1.0) -> None:
        """Choose what is done.

        Args:
            kind: none, mixup, cutmix, or both (for each batch one of them, evenly).
            alpha: the share of an image's own pixels is drawn from Beta(alpha, alpha); above 0.
            probability: share of the batches that are mixed, 0..1.
        """
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
            return Mixed(pixels, labels, own)
        # One draw of torch's seeds all others: a run that goes on restores torch's state alone.
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if rng.random() >= self.probability:
            return Mixed(pixels, labels, own)
        share = float(rng.beta(self.alpha, self.alpha))
        partner = torch.from_numpy(rng.permutation(len(pixels))).to(pixels.device)
        if self.kind == "mixup" or (self.kind == "both" and rng.random() < 0.5):
            mixed = _blend(pixels, pixels[partner], share)
        else:
            height, width = pixels.shape[-2:]
            top, bottom, left, right = _rectangle(height, width, share, rng)
            mixed = pixels.clone()
            mixed[..., top:bottom, left:right] = pixels[partner, :, top:bottom, left:right]
            share = 1.0 - (bottom - top) * (right - left) / (height * width)
        return Mixed(mixed, labels[partner], own * share)


def _blend(first: Tensor, second: Tensor, share: float) -> Tensor:
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
