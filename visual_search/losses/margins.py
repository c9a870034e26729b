"""Margins on the cosine to the right class, in closed form, and which margin each row gets when.

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
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.config import MarginConfig

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


def combined(
    cosine: Tensor, margin: Tensor, factor: Tensor | float = 1.0, drop: Tensor | float = 0.0
) -> Graded:
    """cos(m1 * theta + m2) - m3. Deng et al., "ArcFace" (CVPR 2019), equation 4.

    The angle phi = m1 * theta + m2 is held at 0 from below. Past pi it goes on falling: with
    k = floor(phi / pi) the cosine is (-1)^k * cos(phi) - 2k, monotonic in theta, as in Liu et al.,
    "SphereFace" (CVPR 2017), equation 7.

    Args:
        cosine: any shape, -1..1.
        margin: m2, radians, of a shape that broadcasts to `cosine`.
        factor: m1, 0 or more; 1 leaves the angle as it is.
        drop: m3.
    """
    cosine = _widened(cosine)
    # From two legs the angle is as exact near 0 and pi as anywhere; acos is not.
    theta = torch.atan2(_sine(cosine), cosine)
    phi = (factor * theta + margin).clamp(min=0.0)
    turns = torch.floor(phi / math.pi)
    value = (1.0 - 2.0 * (turns % 2)) * torch.cos(phi) - 2.0 * turns
    held = theta.clamp(CLOSEST, math.pi - CLOSEST)
    phi = factor * held + margin
    rising = 1.0 - 2.0 * (torch.floor(phi / math.pi) % 2)
    slope = rising * factor * torch.sin(phi) / torch.sin(held)
    return value - drop, torch.where(phi < 0, torch.zeros_like(slope), slope)


def sphereface(cosine: Tensor, margin: Tensor) -> Graded:
    """cos(m * theta), m being 1 + `margin`, monotonic in theta.

    Liu et al., "SphereFace" (CVPR 2017), equation 7, for any real m; with m = 1.35 (a `margin` of
    0.35) as in Liu et al., "SphereFace Revived" (2021). Counted from 1, the margin may be zero,
    grow, and differ between classes like every other.
    """
    return combined(cosine, torch.zeros_like(margin), factor=1.0 + margin)


def adaface(cosine: Tensor, margin: Tensor, quality: Tensor) -> Graded:
    """cos(theta - m * z) - (m + m * z). Kim et al., "AdaFace" (CVPR 2022), equations 13 and 14.

    The angle is held at 0 from below, as in the authors' code.

    Args:
        cosine: any shape, -1..1.
        margin: m, of a shape that broadcasts to `cosine`.
        quality: z, -1..1, of a shape that broadcasts to `cosine`; the length of the embedding
            against the usual one.
    """
    return combined(cosine, -margin * quality, drop=margin + margin * quality)


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
    kind: str, counts: Tensor, low: float = 0.05, span: float = 0.45, power: float = -0.25
) -> Tensor:
    """A margin for each class: the rarer the class, the larger.

    The dynamic margins of Ha et al., "Google Landmark Recognition 2020 Competition Third Place
    Solution" (2020), section 2: `power` is `low + span * n_c ** power`, as published (low and span
    are their l_b and h_b, power their -lambda); `minmax` is `low + span * minmax(n_c ** power)`,
    so that the classes span the whole range, all at `low + span` where they are of one size.

    Args:
        kind: minmax or power.
        counts: `(classes,)`, training images of each class; a class without any counts as one.
        low: the margin of the most frequent class (of an endless one, by power), radians.
        span: what the rarest class (of one image, by power) has above it, radians.
        power: negative; how fast the margin falls with the count.

    Returns:
        `(classes,)`, float32, radians, in `low .. low + span`.
    """
    rarity = counts.clamp(min=1).double() ** power
    if kind == "power":
        return (low + span * rarity).float()
    lowest, highest = rarity.min(), rarity.max()
    if highest == lowest:
        return torch.full_like(rarity, low + span).float()
    return (low + span * (rarity - lowest) / (highest - lowest)).float()


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

GROWTH: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "linear": lambda progress: progress,
    "log": lambda progress: torch.log1p(progress * (math.e - 1.0)),
}
"""From the share of the training that is done to that of the margin's rise, by name."""

# Weight of a new batch in the running length of embeddings: the authors' setting.
_ADAFACE_MOMENTUM = 0.01


def automatic_scale(classes: int) -> float:
    """sqrt(2) * ln(C - 1), at least 1. Zhang et al., "AdaCos" (CVPR 2019), equation 12."""
    return max(math.sqrt(2.0) * math.log(max(classes - 1, 1)), 1.0)


class MarginSchedule(nn.Module):
    """The margin of each row at this moment of the training, the scale of the logits, their state.

    Around the formulas above stand: a margin for each class, growth over the training, random
    draws (elasticface), and what a loss learns of the batches it has seen (adaface,
    curricularface, adacos). What changes is in buffers, so that a checkpoint carries it.
    """

    margins: Tensor
    scale: Tensor
    progress: Tensor
    length_mean: Tensor
    length_std: Tensor
    pace: Tensor

    def __init__(self, counts: Tensor, config: MarginConfig) -> None:
        """
        Args:
            counts: `(classes,)`, training images of each class.
            config: softmax is a plain linear classifier without bias: it normalises nothing and
                takes no scale. adacos always starts at :func:`automatic_scale`, and has no margin
                but those of `class_margins`. sphereface takes its margin from m1, or a class
                margin m as the factor 1 + m. What makes the margin grows together: m1 from 1, m2
                and m3 from 0.

        Raises:
            UserError: for margins of more than half a turn.
        """
        super().__init__()
        if config.class_margins != "none" and config.low + config.span > math.pi:
            raise UserError(
                f"margin.low + margin.span is {config.low + config.span:g}, the margin of the "
                "rarest class; it must be at most pi, 3.1415"
            )
        self.config, self.name = config, config.name
        if config.class_margins != "none":
            rule = config.class_margins
            margins = class_margins(rule, counts, config.low, config.span, config.power)
        elif self.name == "sphereface":
            factor = config.m1 if config.m1 not in (0.0, 1.0) else SPHEREFACE_FACTOR
            margins = torch.full((len(counts),), factor - 1.0)
        else:
            without = self.name in ("softmax", "adacos")
            margins = torch.full((len(counts),), 0.0 if without else float(config.margin))
        self.register_buffer("margins", margins.float())
        scale = config.scale
        if self.name == "softmax":
            scale = 1.0
        elif scale == 0 or self.name == "adacos":
            scale = automatic_scale(len(counts))
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("progress", torch.tensor(0.0))
        # Where the authors' code starts: so wide a spread that every length is a usual one.
        self.register_buffer("length_mean", torch.tensor(20.0))
        self.register_buffer("length_std", torch.tensor(100.0))
        self.register_buffer("pace", torch.tensor(0.0))

    @property
    def normalize(self) -> bool:
        """Whether similarities are cosines."""
        return self.name != "softmax"

    @property
    def observes(self) -> bool:
        """Whether :meth:`observe` wants to see the batches of a training, of all processes."""
        return self.name in ("adaface", "curricularface", "adacos")

    @torch.no_grad()
    def set_progress(self, share: float) -> None:
        """Tell how much of the training is done, 0..1: growing margins follow it."""
        self.progress.fill_(min(max(share, 0.0), 1.0))

    @torch.no_grad()
    def observe(self, similarity: Tensor, lengths: Tensor, log_rivals: Tensor | None) -> None:
        """Learn from a batch, before its loss; nothing to learn outside of adaface and the like.

        Args:
            similarity: `(N,)`, to the right classes, of the batch of all processes together.
            lengths: `(N,)`, of the embeddings.
            log_rivals: of adacos, a scalar: the logarithm of the mean over rows of the summed
                exponentials of the wrong classes' logits.
        """
        if self.name == "adaface":
            spread = lengths.std() if len(lengths) > 1 else torch.zeros_like(self.length_std)
            self.length_mean.lerp_(lengths.mean().to(self.length_mean), _ADAFACE_MOMENTUM)
            self.length_std.lerp_(spread.to(self.length_std), _ADAFACE_MOMENTUM)
        elif self.name == "curricularface":
            # Huang et al. (CVPR 2020), equation 10.
            self.pace.lerp_(similarity.mean().to(self.pace), self.config.curricular_momentum)
        elif self.name == "adacos" and log_rivals is not None:
            # Zhang et al. (CVPR 2019), equation 15. The median angle is that of the median
            # cosine, the upper one of two, and the cosine of min(pi / 4, angle) the larger one.
            median = -(-similarity).median()
            self.scale.copy_(log_rivals / median.clamp(min=math.cos(math.pi / 4)))

    def draw(self, similarity: Tensor) -> Tensor:
        """Elasticface's deviation of each row's margin, `(N,)`; zeros for the others.

        Boutros et al., "ElasticFace" (CVPR Workshops 2022), section 3.2; in the plus variants
        (section 3.3), rows further from their class get the larger draws. From torch's global
        generator; none outside of training.

        Args:
            similarity: `(N,)`, to the right class.
        """
        std = self.config.elastic_std if self.name.startswith("elasticface") else 0.0
        if not std or not self.training:
            return torch.zeros_like(similarity)
        deviations = torch.randn_like(similarity) * std
        if not self.name.endswith("plus"):
            return deviations
        nearest_first = similarity.argsort(descending=True)
        return torch.empty_like(deviations).scatter_(0, nearest_first, deviations.sort().values)

    def grade(
        self, similarity: Tensor, labels: Tensor, lengths: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The margin on similarities: `(value, slope, threshold)`, `(N,)` each.

        The threshold is curricularface's, above which wrong classes are hard; None for the others.

        Args:
            similarity: `(N,)`, to the right class.
            labels: `(N,)`, int64, which that is.
            lengths: `(N,)`, of the embeddings, not normalised.
            draws: of :meth:`draw`.
        """
        start = self.config.grow_from
        growth = start + (1.0 - start) * GROWTH[self.config.grow](self.progress)
        growth = growth.to(similarity.dtype)
        margins = self.margins[labels].to(similarity.dtype) * growth
        threshold = shifted_cosine(similarity, margins) if self.name == "curricularface" else None
        more: tuple[Tensor, ...] = ()
        if self.name == "combined":
            more = 1.0 + (self.config.m1 - 1.0) * growth, self.config.m3 * growth
        elif self.name == "adaface":
            usual, spread = self.length_mean, self.length_std + 1e-3
            quality = ((lengths - usual) / spread * self.config.adaface_h).clamp(-1.0, 1.0)
            more = (quality.to(similarity.dtype),)
        value, slope = MARGINS[self.name](similarity, (margins + draws).clamp(min=0.0), *more)
        return value, slope, threshold
