"""Which margin each row gets at this moment of the training, and the state that decides it.

The margins themselves are functions (:mod:`visual_search.margins`). Around them stand: a margin
for each class, growth over the training, random draws (elasticface), and what a loss learns of
the batches it has seen (adaface, curricularface, adacos). What moves is in buffers, so that a
checkpoint carries it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor, nn

from visual_search.errors import UserError
from visual_search.margins import (
    CLASS_MARGINS,
    MARGINS,
    SPHEREFACE_FACTOR,
    Graded,
    shifted_cosine,
)


class MarginOptions(TypedDict, total=False):
    """What :class:`MarginRule` takes by name, for the heads that pass it on."""

    name: str
    scale: float
    margin: float
    m1: float
    m3: float
    class_margins: str
    low: float
    span: float
    power: float
    grow: str
    grow_from: float
    elastic_std: float
    adaface_h: float
    curricular_momentum: float


def _linear(progress: Tensor) -> Tensor:
    return progress


def _logarithmic(progress: Tensor) -> Tensor:
    return torch.log1p(progress * (math.e - 1.0))


GROWTH: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "linear": _linear,
    "log": _logarithmic,
}
"""From the share of the training that is done to that of the margin's rise, by name."""

# Losses that learn from the batches, and so need those of all processes.
OBSERVING = ("adaface", "curricularface", "adacos")
# Weight of a new batch in the running length of embeddings: the authors' setting.
_ADAFACE_MOMENTUM = 0.01


def automatic_scale(classes: int) -> float:
    """sqrt(2) * ln(C - 1), at least 1. Zhang et al., "AdaCos" (CVPR 2019), equation 12."""
    return max(math.sqrt(2.0) * math.log(max(classes - 1, 1)), 1.0)


class MarginRule(nn.Module):
    """The margin of each row, the scale of the logits, and their state."""

    margins: Tensor
    scale: Tensor
    progress: Tensor
    length_mean: Tensor
    length_std: Tensor
    pace: Tensor

    def __init__(
        self,
        counts: Tensor,
        *,
        name: str = "arcface",
        scale: float = 30.0,
        margin: float = 0.5,
        m1: float = 1.0,
        m3: float = 0.0,
        class_margins: str = "none",
        low: float = 0.05,
        span: float = 0.45,
        power: float = -0.25,
        grow: str = "none",
        grow_from: float = 0.0,
        elastic_std: float = 0.0125,
        adaface_h: float = 0.333,
        curricular_momentum: float = 0.01,
    ) -> None:
        """
        Args:
            counts: `(classes,)`, training images of each class.
            name: a key of :data:`visual_search.margins.MARGINS`. softmax is a plain linear
                classifier without bias: it normalises nothing and takes no scale. adacos has no
                margin but those of `class_margins`.
            scale: s, the radius of the sphere the logits live on; 0 is :func:`automatic_scale`,
                where adacos always starts.
            margin: m of every class where class_margins is none; radians, or units of the cosine
                for cosface. sphereface takes its margin from m1.
            m1: of combined and sphereface, the factor of the angle; sphereface takes 1.35 when it
                is 1 (no margin) or 0.
            m3: of combined, subtracted from the cosine.
            class_margins: none, or a key of :data:`visual_search.margins.CLASS_MARGINS`; a class
                of sphereface has the factor 1 + its margin.
            low: see there.
            span: see there.
            power: see there.
            grow: a key of :data:`GROWTH`: how the margin rises with the training. Everything
                that makes the margin grows: m1 from 1, m2 and m3 from 0.
            grow_from: share of the margin at the start, 0..1.
            elastic_std: standard deviation of elasticface's margin.
            adaface_h: of adaface, how strongly the embedding's length moves the margin.
            curricular_momentum: weight of a new batch in curricularface's running mean.

        Raises:
            UserError: for a value that cannot be, or that the named loss has no use for.
        """
        super().__init__()
        _check_one_of("name", name, [*MARGINS])
        _check_one_of("class_margins", class_margins, ["none", *CLASS_MARGINS])
        _check_one_of("grow", grow, [*GROWTH])
        for key, value, least, most in (
            ("scale", scale, 0.0, math.inf),
            ("margin", margin, 0.0, math.pi),
            ("m1", m1, 0.0, math.inf),
            ("grow_from", grow_from, 0.0, 1.0),
            ("elastic_std", elastic_std, 0.0, math.inf),
            ("curricular_momentum", curricular_momentum, 0.0, 1.0),
        ):
            if not least <= value <= most:
                raise UserError(f"margin.{key} is {value}; write a number in {least:g}..{most:g}")
        _check_use(name, m1, m3, class_margins, grow)
        self.name, self._factor, self._drop = name, m1, m3
        self._grow, self._grow_from = grow, grow_from
        self._elastic_std = elastic_std if name.startswith("elasticface") else 0.0
        self._adaface_h, self._curricular_momentum = adaface_h, curricular_momentum
        if class_margins != "none":
            margins = CLASS_MARGINS[class_margins](counts, low, span, power)
        elif name == "sphereface":
            margins = torch.full(
                (len(counts),), (m1 if m1 not in (0.0, 1.0) else SPHEREFACE_FACTOR) - 1.0
            )
        else:
            without = name in ("softmax", "adacos")
            margins = torch.full((len(counts),), 0.0 if without else float(margin))
        self.register_buffer("margins", margins.float())
        if name == "softmax":
            scale = 1.0
        elif scale == 0 or name == "adacos":
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
        """Whether :meth:`observe` wants to see the batches of a training."""
        return self.name in OBSERVING

    @torch.no_grad()
    def set_progress(self, share: float) -> None:
        """Tell how much of the training is done, 0..1: growing margins follow it."""
        self.progress.fill_(min(max(share, 0.0), 1.0))

    def _growth(self) -> Tensor:
        return self._grow_from + (1.0 - self._grow_from) * GROWTH[self._grow](self.progress)

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
            self.pace.lerp_(similarity.mean().to(self.pace), self._curricular_momentum)
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
        if not self._elastic_std or not self.training:
            return torch.zeros_like(similarity)
        deviations = torch.randn_like(similarity) * self._elastic_std
        if not self.name.endswith("plus"):
            return deviations
        nearest_first = similarity.argsort(descending=True)
        return torch.empty_like(deviations).scatter_(0, nearest_first, deviations.sort().values)

    def grade(self, similarity: Tensor, margins: Tensor, lengths: Tensor, draws: Tensor) -> Graded:
        """The margin on similarities: `(value, slope)` of their common shape.

        Args:
            similarity: any shape.
            margins: full-grown margins of the classes they belong to; all broadcast together.
            lengths: of the embeddings, not normalised.
            draws: of :meth:`draw`.
        """
        growth = self._growth().to(similarity.dtype)
        margins = (margins.to(similarity.dtype) * growth + draws).clamp(min=0.0)
        if self.name == "combined":
            factor = 1.0 + (self._factor - 1.0) * growth
            return MARGINS[self.name](similarity, margins, factor, self._drop * growth)
        if self.name == "adaface":
            usual, spread = self.length_mean, self.length_std + 1e-3
            quality = ((lengths - usual) / spread * self._adaface_h).clamp(-1.0, 1.0)
            return MARGINS[self.name](similarity, margins, quality.to(similarity.dtype))
        return MARGINS[self.name](similarity, margins)

    def hardness(self, similarity: Tensor, margins: Tensor) -> Tensor | None:
        """Curricularface's threshold of hard wrong classes, `(N,)`; None for the others.

        Args:
            similarity: `(N,)`, to the right class.
            margins: `(N,)`, full-grown, of the right class.
        """
        if self.name != "curricularface":
            return None
        growth = self._growth().to(similarity.dtype)
        return shifted_cosine(similarity, margins.to(similarity.dtype) * growth)


def _check_one_of(key: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise UserError(f"margin.{key} is {value!r}; it can be {', '.join(known)}")


def _check_use(name: str, m1: float, m3: float, class_margins: str, grow: str) -> None:
    """Refuse what the named loss would silently ignore."""
    if m1 != 1.0 and name not in ("combined", "sphereface"):
        raise UserError(f"margin.m1 is {m1}, but {name} has no factor of the angle; write 1.0")
    if m3 != 0.0 and name != "combined":
        raise UserError(f"margin.m3 is {m3}, but only combined has it; write 0.0, or margin.margin")
    if name == "softmax" and class_margins != "none":
        raise UserError(
            f"margin.class_margins is {class_margins}, but softmax has no margin; write none"
        )
    if grow != "none" and (name == "softmax" or (name == "adacos" and class_margins == "none")):
        raise UserError(f"margin.grow is {grow}, but {name} has no margin to grow; write none")
