"""The classification head: it trains an embedder with a margin softmax, and is then dropped."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from visual_search.errors import UserError
from visual_search.gathering import gather_constant
from visual_search.generators import generator_of
from visual_search.margin_rule import MarginOptions, MarginRule
from visual_search.margin_softmax import MarginLogits, Target, margin_softmax
from visual_search.margins import curricular_negatives
from visual_search.similarity import Similarities, nearest_similarity, similarities

# Classes whose first centres come from one generator, so that any run of classes can be made
# without those before it.
_SEEDED_CLASSES = 4096


def initial_centers(
    classes: int, centers: int, dimension: int, seed: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Random centres of the classes `start..stop`, the same whatever the run they are made in.

    Uniform, with the standard deviation of Xavier's for the whole matrix but at least 0.01: the
    update of a direction is inverse to its length, and Xavier's shrinks with the classes.

    Returns:
        `((stop - start) * centers, dimension)`, float32.
    """
    stop = classes if stop is None else stop
    bound = math.sqrt(3.0) * max(math.sqrt(2.0 / (classes * centers + dimension)), 0.01)
    answer = torch.empty(stop - start, centers, dimension)
    first = start // _SEEDED_CLASSES * _SEEDED_CLASSES
    for block in range(first, stop, _SEEDED_CLASSES):
        generator = generator_of(seed, block)
        made = torch.empty(min(_SEEDED_CLASSES, classes - block), centers, dimension)
        made.uniform_(-bound, bound, generator=generator)
        low, high = max(block, start), min(block + len(made), stop)
        answer[low - start : high - start] = made[low - block : high - block]
    return answer.view(-1, dimension)


def check_head(centers: int, label_smoothing: float, focal_gamma: float) -> None:
    """Refuse what no head can have.

    Raises:
        UserError: naming the key of the configuration.
    """
    if not 1 <= centers <= 255:
        raise UserError(f"margin.centers is {centers}; write a whole number in 1..255")
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(
            f"margin.label_smoothing is {label_smoothing}; write a number from 0 to below 1"
        )
    if focal_gamma < 0.0:
        raise UserError(f"margin.focal_gamma is {focal_gamma}; write 0 or more")


def focal(losses: Tensor, gamma: float) -> Tensor:
    """(1 - p) ** gamma * losses, p = exp(-losses): rows that are right already weigh less.

    Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017), equation 4. The weight is
    part of what is differentiated.

    Args:
        losses: any shape, cross-entropies, 0 or more.
        gamma: 0 leaves them as they are.
    """
    # 1 - exp(-x) loses all digits near 0, where the weight's slope would then be off.
    return losses if gamma == 0 else (-torch.expm1(-losses)).clamp(min=1e-12) ** gamma * losses


class MarginHead(nn.Module):
    """Sub-centre softmax with any margin of :data:`visual_search.margins.MARGINS`.

    The similarity to a class is that to the nearest of its centres: Deng et al., "Sub-center
    ArcFace" (ECCV 2020), equation 3.
    """

    def __init__(
        self,
        dimension: int,
        counts: Tensor,
        *,
        centers: int = 3,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        seed: int = 0,
        **options: Unpack[MarginOptions],
    ) -> None:
        """
        Args:
            dimension: width of the embeddings.
            counts: `(classes,)`, training images of each class.
            centers: sub-centres of each class, 1..255; 1 is the plain form.
            label_smoothing: share of the label spread over all classes, 0 to below 1.
            focal_gamma: see :func:`focal`; 0 is plain cross-entropy.
            seed: of the first centres.
            options: as :class:`visual_search.margin_rule.MarginRule`.

        Raises:
            UserError: for a value that cannot be, naming its key, `margin.…`.
        """
        super().__init__()
        check_head(centers, label_smoothing, focal_gamma)
        self.centers, self.label_smoothing, self.focal_gamma = centers, label_smoothing, focal_gamma
        self.rule = MarginRule(counts, **options)
        self.weight = nn.Parameter(initial_centers(len(counts), centers, dimension, seed))

    def set_progress(self, share: float) -> None:
        """Tell how much of the training is done, 0..1: a growing margin follows it."""
        self.rule.set_progress(share)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row, `(N,)`, float32.

        Args:
            embeddings: `(N, dimension)`, not normalised, of any floating type.
            labels: `(N,)`, int64, 0..classes-1.
        """
        return self._losses(embeddings, self.weight, labels, observes=True)

    def prefix_losses(self, embeddings: Tensor, labels: Tensor, width: int) -> Tensor:
        """The loss of each row, `(N,)`, by the first `width` dimensions of both sides alone.

        Kusupati et al., "Matryoshka Representation Learning" (NeurIPS 2022), equation 1, with one
        class matrix for all widths (its section 3, MRL-E). What the margin has learnt of the
        data is that of whole embeddings.

        Args:
            embeddings: `(N, dimension)`, as :meth:`forward`.
            labels: `(N,)`, int64.
            width: 1..dimension.
        """
        centers = self.weight[:, :width].contiguous()
        return self._losses(embeddings[:, :width], centers, labels, observes=False)

    def _losses(self, embeddings: Tensor, weight: Tensor, labels: Tensor, observes: bool) -> Tensor:
        similar = similarities(
            embeddings,
            weight,
            self.centers,
            normalize=self.rule.normalize,
            reserve=torch.is_grad_enabled() and weight.requires_grad,
        )
        target = self._target(embeddings, labels, similar, observes)
        logits = MarginLogits(similar, labels, target, self.rule.scale)
        losses = margin_softmax(embeddings, weight, logits, self.label_smoothing)
        return focal(losses, self.focal_gamma)

    @torch.no_grad()
    def _target(
        self, embeddings: Tensor, labels: Tensor, similar: Similarities, observes: bool
    ) -> Target:
        to_target = similar.values.gather(1, labels[:, None]).squeeze(1)
        lengths = embeddings.detach().to(to_target.dtype).norm(dim=1)
        if observes:
            self._observe(to_target, lengths, similar.values, labels)
        margins = self.rule.margins[labels]
        value, slope = self.rule.grade(to_target, margins, lengths, self.rule.draw(to_target))
        return Target(value, slope, self.rule.hardness(to_target, margins), self.rule.pace.clone())

    def _observe(self, to_target: Tensor, lengths: Tensor, values: Tensor, labels: Tensor) -> None:
        """Show the rule the batch of all processes."""
        if not (self.training and self.rule.observes):
            return
        log_rivals = None
        if self.rule.name == "adacos":
            wrong = (values * self.rule.scale).scatter(1, labels[:, None], -math.inf)
            of_rows = gather_constant(torch.logsumexp(wrong, dim=1))
            log_rivals = torch.logsumexp(of_rows, dim=0) - math.log(len(of_rows))
        self.rule.observe(gather_constant(to_target), gather_constant(lengths), log_rivals)

    def logits(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scaled similarities `(N, classes)`, with the margin on the labels where there are any.

        Arguments as :meth:`forward`; the state of the margin stays as it is.
        """
        values = nearest_similarity(
            embeddings, self.weight, self.centers, normalize=self.rule.normalize
        )
        if labels is None:
            return self.rule.scale * values
        place = labels[:, None]
        to_target = values.gather(1, place)
        plain = to_target.detach().squeeze(1)
        margins = self.rule.margins[labels]
        lengths = embeddings.detach().to(values.dtype).norm(dim=1)
        value, slope = self.rule.grade(plain, margins, lengths, torch.zeros_like(plain))
        threshold = self.rule.hardness(plain, margins)
        if threshold is not None:
            graded = curricular_negatives(values.detach(), threshold[:, None], self.rule.pace)
            values = _with_slope(values, *graded)
        margined = _with_slope(to_target, value[:, None], slope[:, None])
        return self.rule.scale * values.scatter(1, place, margined)

    def soft_loss(self, embeddings: Tensor, probabilities: Tensor) -> Tensor:
        """The loss of each row under soft targets, `(N,)`: the mean of :meth:`forward` over them.

        `sum_j q_j * loss(row, label j)`, every class with its margin when it is the target: one
        class with all probability gives :meth:`forward`, two that of mixup's weighted sum.
        It goes through autograd and keeps several `(N, classes)` matrices.

        Args:
            embeddings: `(N, dimension)`, not normalised.
            probabilities: `(N, classes)`, 0 or more, each row's sum 1.

        Raises:
            UserError: for curricularface, whose wrong classes are judged by one right class.
        """
        if self.rule.name == "curricularface":
            raise UserError(
                "margin.name is curricularface, which has no loss for soft targets; "
                "write another margin, or train without soft targets"
            )
        values = nearest_similarity(
            embeddings, self.weight, self.centers, normalize=self.rule.normalize
        )
        with torch.no_grad():
            plain, lengths = values.detach(), embeddings.detach().to(values.dtype).norm(dim=1)
            to_target = (plain * probabilities).sum(dim=1)
            self._observe(to_target, lengths, plain, probabilities.argmax(dim=1))
            draws = self.rule.draw(to_target)[:, None]
            graded = self.rule.grade(plain, self.rule.margins, lengths[:, None], draws)
        logits = self.rule.scale * values
        margined = self.rule.scale * _with_slope(values, *graded)
        log_sum = torch.logaddexp(_log_sum_of_others(logits), margined)
        even = self.label_smoothing / logits.shape[1]
        smoothed = logits.sum(dim=1, keepdim=True) - logits + margined
        losses = log_sum - (1.0 - self.label_smoothing) * margined - even * smoothed
        return (probabilities * focal(losses, self.focal_gamma)).sum(dim=1)


def _with_slope(argument: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`value`, whose gradient with respect to `argument` is `slope`."""
    return value + slope * (argument - argument.detach())


def _log_sum_of_others(logits: Tensor) -> Tensor:
    """Of each entry, the logarithm of the summed exponentials of the rest of its row.

    log(1 - p) on top of the row's own, except for the largest entry, whose p may be 1 to the
    last digit: there the others are summed by themselves.
    """
    largest = logits.argmax(dim=1, keepdim=True)
    is_largest = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, largest, True)
    log_p = torch.log_softmax(logits, dim=1)
    rest = torch.log1p(-torch.exp(log_p.masked_fill(is_largest, -math.inf)))
    others = torch.logsumexp(logits.masked_fill(is_largest, -math.inf), dim=1, keepdim=True)
    return torch.where(is_largest, others, rest + torch.logsumexp(logits, dim=1, keepdim=True))
