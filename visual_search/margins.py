"""Margins on the cosine to the right class: the target's logit and its slope, both in closed form.

Every margin is a function of the target's cosine and a margin that returns `(value, slope)`: the
margined cosine, still without the scale s, and its derivative with respect to the cosine. Having
the slope spares the loss a graph, and keeps it finite: d cos(theta + m) / d cos(theta) has the
sine of theta below the line, so it is infinite at cos(theta) = +-1. It is evaluated at an angle
held :data:`CLOSEST` radians away from there. That costs nothing: the gradient of the cosine
itself, which the slope multiplies, has the length sin(theta).

Half precision is too coarse for all of this (one step of bfloat16 below 1 is 5 degrees): cosines
are widened to float32 on arrival, and results are float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CLOSEST = 1e-3
"""Slopes are taken at angles of at least this to 0 and to pi, radians."""
SPHEREFACE_FACTOR = 1.35
"""Factor of the angle in sphereface, where none is given."""

Graded = tuple[Tensor, Tensor]
"""A margined cosine and its derivative with respect to the cosine."""

_LARGEST = math.cos(CLOSEST)


def _widened(cosine: Tensor) -> Tensor:
    # Rounding leaves cosines of 1 + 1e-7, of which there is no angle.
    return cosine.to(torch.promote_types(cosine.dtype, torch.float32)).clamp(-1.0, 1.0)


def _sine(cosine: Tensor) -> Tensor:
    # (1 - c)(1 + c), not 1 - c * c: the difference is exact near +-1, where the sine is small.
    return ((1.0 - cosine) * (1.0 + cosine)).clamp(min=0.0).sqrt()


def shifted_cosine(cosine: Tensor, margin: Tensor) -> Tensor:
    """cos(theta + m) as it is, falling and rising again past theta = pi - m."""
    cosine = _widened(cosine)
    return cosine * torch.cos(margin) - _sine(cosine) * torch.sin(margin)


def arcface(cosine: Tensor, margin: Tensor) -> Graded:
    """cos(theta + m); past theta = pi - m, where it would rise again, cos(theta) - m * sin(m).

    Deng et al., "ArcFace" (CVPR 2019), equation 3; the second part as in the authors' code.

    Args:
        cosine: any shape, -1..1.
        margin: m, radians, of a shape that broadcasts to `cosine`.
    """
    cosine = _widened(cosine)
    cos_m, sin_m = torch.cos(margin), torch.sin(margin)
    held = cosine.clamp(-_LARGEST, _LARGEST)
    slope = cos_m + sin_m * held / _sine(held)
    within = cosine > -cos_m
    value = torch.where(within, shifted_cosine(cosine, margin), cosine - margin * sin_m)
    return value, torch.where(within, slope, torch.ones_like(slope))


def cosface(cosine: Tensor, margin: Tensor) -> Graded:
    """cos(theta) - m. Wang et al., "CosFace" (CVPR 2018), equation 4."""
    cosine = _widened(cosine)
    return cosine - margin, torch.ones_like(cosine - margin)


def _angular(cosine: Tensor, factor: Tensor | float, shift: Tensor) -> Graded:
    """cos(f * theta + m), held at 1 below an angle of 0 and going on downwards past pi.

    With phi = f * theta + m and k = floor(phi / pi) it is (-1)^k * cos(phi) - 2k, monotonic in
    theta: Liu et al., "SphereFace" (CVPR 2017), equation 7.
    """
    # From two legs the angle is as exact near 0 and pi as anywhere; acos is not.
    theta = torch.atan2(_sine(cosine), cosine)
    phi = (factor * theta + shift).clamp(min=0.0)
    turns = torch.floor(phi / math.pi)
    value = (1.0 - 2.0 * (turns % 2)) * torch.cos(phi) - 2.0 * turns
    held = theta.clamp(CLOSEST, math.pi - CLOSEST)
    phi = factor * held + shift
    rising = 1.0 - 2.0 * (torch.floor(phi / math.pi) % 2)
    slope = rising * factor * torch.sin(phi) / torch.sin(held)
    return value, torch.where(phi < 0, torch.zeros_like(slope), slope)


def combined(
    cosine: Tensor, margin: Tensor, factor: Tensor | float = 1.0, drop: Tensor | float = 0.0
) -> Graded:
    """cos(m1 * theta + m2) - m3. Deng et al., "ArcFace" (CVPR 2019), equation 4.

    Past m1 * theta + m2 = pi it goes on falling, as :func:`sphereface` does.

    Args:
        cosine: any shape, -1..1.
        margin: m2, radians, of a shape that broadcasts to `cosine`.
        factor: m1, 0 or more; 1 leaves the angle as it is.
        drop: m3.
    """
    value, slope = _angular(_widened(cosine), factor, margin)
    return value - drop, slope


def sphereface(cosine: Tensor, margin: Tensor) -> Graded:
    """cos(m * theta), m being 1 + `margin`, monotonic in theta.

    Liu et al., "SphereFace" (CVPR 2017), equation 7, for any real m; with m = 1.35 (a `margin` of
    0.35) as in Liu et al., "SphereFace Revived" (2021). Counted from 1, the margin may be zero,
    grow, and differ between classes like every other.
    """
    return _angular(_widened(cosine), 1.0 + margin, torch.zeros_like(margin))


def adaface(cosine: Tensor, margin: Tensor, quality: Tensor) -> Graded:
    """cos(theta - m * z) - (m + m * z). Kim et al., "AdaFace" (CVPR 2022), equations 13 and 14.

    The angle is held at 0 from below, as in the authors' code.

    Args:
        cosine: any shape, -1..1.
        margin: m, of a shape that broadcasts to `cosine`.
        quality: z, -1..1, of a shape that broadcasts to `cosine`; the length of the embedding
            against the usual one.
    """
    value, slope = _angular(_widened(cosine), 1.0, -margin * quality)
    return value - (margin + margin * quality), slope


def unchanged(similarity: Tensor, margin: Tensor) -> Graded:
    """No margin: the similarity, which may be a plain inner product of any size."""
    return similarity, torch.ones_like(similarity)


def curricular_negatives(cosine: Tensor, threshold: Tensor, pace: Tensor) -> Graded:
    """Wrong classes nearer than the margined target weigh more, and more so later in training.

    cos_j where it is at most cos(theta_y + m), else cos_j * (t + cos_j). Huang et al.,
    "CurricularFace" (CVPR 2020), equations 8 and 9.

    Args:
        cosine: `(N, B)`, to wrong classes.
        threshold: `(N, 1)`, cos(theta_y + m) of :func:`shifted_cosine`.
        pace: t, the running mean of the targets' cosines; broadcasts to `cosine`.
    """
    hard = cosine > threshold
    value = torch.where(hard, cosine * (pace + cosine), cosine)
    return value, torch.where(hard, pace + 2.0 * cosine, torch.ones_like(cosine))


def class_margins(
    counts: Tensor, low: float = 0.05, span: float = 0.45, power: float = -0.25
) -> Tensor:
    """A margin for each class: the rarer the class, the larger; the classes span the whole range.

    `m_c = low + span * minmax(n_c ** power)`, the min-max form of the dynamic margins of Ha et
    al., "Google Landmark Recognition 2020 Competition Third Place Solution" (2020), section 2.

    Args:
        counts: `(classes,)`, training images of each class; a class without any counts as one.
        low: the margin of the most frequent class, radians.
        span: what the rarest class has above it, radians.
        power: negative; how fast the margin falls with the count.

    Returns:
        `(classes,)`, float32, radians, in `low .. low + span`. All are `low + span` when the
        classes are of one size.
    """
    rarity = counts.clamp(min=1).double() ** power
    lowest, highest = rarity.min(), rarity.max()
    if highest == lowest:
        return torch.full_like(rarity, low + span).float()
    return (low + span * (rarity - lowest) / (highest - lowest)).float()


def power_margins(
    counts: Tensor, low: float = 0.05, span: float = 0.45, power: float = -0.25
) -> Tensor:
    """A margin for each class from its own count alone: `m_c = low + span * n_c ** power`.

    The dynamic margins of Ha et al. (2020), section 2, as published: low and span are their l_b
    and h_b, power their -lambda. Arguments and result as in :func:`class_margins`; `low` is the
    margin of an endless class, `low + span` that of a class of one image.
    """
    return (low + span * counts.clamp(min=1).double() ** power).float()


MARGINS: dict[str, Callable[..., Graded]] = {
    "softmax": unchanged,
    "arcface": arcface,
    "cosface": cosface,
    "combined": combined,
    "sphereface": sphereface,
    "elasticface-arc": arcface,
    "elasticface-arc-plus": arcface,
    "elasticface-cos": cosface,
    "elasticface-cos-plus": cosface,
    "curricularface": arcface,
    "adaface": adaface,
    "adacos": arcface,
}
"""The target's logit by the name of the loss; what else a loss does with it is its head's."""

CLASS_MARGINS: dict[str, Callable[[Tensor, float, float, float], Tensor]] = {
    "minmax": class_margins,
    "power": power_margins,
}
"""Margins of classes by their size, by name."""
