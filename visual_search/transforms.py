"""From a decoded photo to the square of pixels that training sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

BICUBIC, BILINEAR = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR
GREY = 127


@dataclass(frozen=True)
class Augmentation:
    """RGB image to pixels; a class, so that it reaches worker processes that are spawned."""

    pipeline: Callable[[Image.Image], Image.Image]
    erase: Callable[[Tensor], Tensor] | None

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixels `(3, size, size)`, uint8, 0..255."""
        pixels = pil_to_tensor(self.pipeline(image))
        return self.erase(pixels) if self.erase else pixels


def build_augmentation(name: str, size: int, random_erasing: float = 0.0) -> Augmentation:
    """A function from an RGB image to pixels `(3, size, size)`, uint8, 0..255.

    Random draws come from torch's global generator.

    Args:
        name: a key of :data:`AUGMENTATIONS`.
        size: side of the square in pixels.
        random_erasing: share of the photos in which a rectangle of 2 to 33 % of the area is
            grey (Zhong et al. 2020), 0..1.

    Raises:
        KeyError: for an unknown name.
    """
    steps = AUGMENTATIONS[name](size)
    pipeline = v2.Compose([*steps, v2.Resize((size, size), BICUBIC)])
    erase = v2.RandomErasing(random_erasing, value=[GREY] * 3) if random_erasing else None
    return Augmentation(pipeline, erase)


def _none(size: int) -> list[Callable]:
    """The square resize alone: what validation and the submission do."""
    return []


def _flip(size: int) -> list[Callable]:
    """Mirrored half of the time."""
    return [v2.RandomHorizontalFlip()]


def _larger(size: int) -> v2.Resize:
    """The square from which the photo is cut, or that AutoAugment and its kin work on."""
    larger = round(size * 1.15)
    return v2.Resize((larger, larger), BICUBIC)


def _plain(size: int) -> list[Callable]:
    """A crop of a slightly larger square, flips, and a little of other light."""
    return [
        _larger(size),
        v2.RandomCrop(size),
        v2.RandomHorizontalFlip(),
        # Without hue, which costs as much as all the rest.
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]


def _autoaugment(size: int) -> list[Callable]:
    """AutoAugment's ImageNet policy (Cubuk et al. 2019) on a slightly larger square, and flips."""
    return [
        _larger(size),
        v2.RandomHorizontalFlip(),
        v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET),
    ]


def _randaugment(size: int) -> list[Callable]:
    """RandAugment (Cubuk et al. 2020), two operations of magnitude 9 of 30, and flips."""
    return [_larger(size), v2.RandomHorizontalFlip(), v2.RandAugment(2, 9, interpolation=BILINEAR)]


def _trivialaugment(size: int) -> list[Callable]:
    """TrivialAugment (Müller and Hutter 2021), one operation of any magnitude, and flips."""
    return [
        _larger(size),
        v2.RandomHorizontalFlip(),
        v2.TrivialAugmentWide(interpolation=BILINEAR),
    ]


def _phone(size: int) -> list[Callable]:
    """What turns a studio photo towards a phone photo: loose crops, light, blur, AutoAugment."""
    larger = round(size * 1.15)
    return [
        v2.RandomResizedCrop(
            (larger, larger), scale=(0.5, 1.0), ratio=(0.6, 1.7), interpolation=BICUBIC
        ),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.3, 0.04)], p=0.8),
        v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.3, 2.0))], p=0.25),
        _MostlyRotate(p=0.4, degrees=20.0),
    ]


class _MostlyRotate(torch.nn.Module):
    """Now and then a tilted phone; the corners are filled with the photo's own mean colour."""

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
    "none": _none,
    "flip": _flip,
    "plain": _plain,
    "autoaugment": _autoaugment,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
    "phone": _phone,
}
