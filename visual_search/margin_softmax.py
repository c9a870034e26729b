"""Softmax cross-entropy with a margin, fused with the product that makes the logits.

One autograd function from embeddings and class centres to a loss for each row, its gradient in
closed form: with logits z = s * f(cos), probabilities p and targets q (smoothed labels),
d loss / d cos = s * f'(cos) * (p - q), which :mod:`visual_search.similarity` takes on to
embeddings and centres. Between forward and backward only the cosines are kept, `N * classes`
numbers; logits and probabilities live for one block of classes at a time. Work and traffic are
those of the products (see there).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from visual_search.margins import curricular_negatives
from visual_search.similarity import (
    Similarities,
    column_scratch,
    similarities,
    similarity_gradients,
)


@dataclass(frozen=True)
class Target:
    """What a margin makes of the right class of each row; no gradient flows through these."""

    value: Tensor
    """`(N,)`: the margined similarity."""
    slope: Tensor
    """`(N,)`: its derivative with respect to the similarity."""
    threshold: Tensor | None = None
    """`(N,)`, of curricularface: wrong classes above it are hard."""
    pace: Tensor | None = None
    """A scalar, of curricularface: t."""


@dataclass(frozen=True)
class MarginLogits:
    """Logits block by block; the whole matrix of them never exists."""

    similar: Similarities
    columns: Tensor
    """`(N,)`, int64: the column of each row's right class; -1 where it has none here."""
    target: Target
    scale: Tensor
    """A scalar."""

    def _place(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Where the right class stands within these columns, `(N, 1)`, and whether it does."""
        # Indices held inside, instead of picking rows, which would wait for the GPU.
        place = self.columns[:, None] - start
        return place.clamp(0, stop - start - 1), (place >= 0) & (place < stop - start)

    def block(self, start: int, stop: int, out: Tensor) -> Tensor:
        """The logits of these columns, written to `out`, `(N, stop - start)`."""
        values, target = self.similar.values[:, start:stop], self.target
        if target.threshold is not None and target.pace is not None:
            values, _ = curricular_negatives(values, target.threshold[:, None], target.pace)
        logits = torch.mul(values, self.scale, out=out)
        place, here = self._place(start, stop)
        right = torch.where(here, (target.value * self.scale)[:, None], logits.gather(1, place))
        return logits.scatter_(1, place, right)

    def log_sum(self) -> Tensor:
        """Of each row, the logarithm of the summed exponentials of its logits, `(N,)`."""
        # Without columns, as a process may be among many: nothing to sum.
        none = torch.full_like(self.target.value, -math.inf)
        runs = [_log_sum_in_place(block) for block in self._blocks()]
        return torch.logsumexp(torch.stack(runs), dim=0) if runs else none

    def total(self) -> Tensor:
        """Of each row, the sum of its logits, `(N,)`."""
        nothing = torch.zeros_like(self.target.value)
        return sum((block.sum(dim=1) for block in self._blocks()), nothing)

    def _blocks(self) -> Iterator[Tensor]:
        """Logits in runs of columns that stay in the cache; each may be overwritten by its user."""
        rows, columns = self.similar.values.shape
        numbers = 1 << 18 if self.columns.device.type == "cpu" else 1 << 26
        step = min(max(1, numbers // max(rows, 1)), max(columns, 1))
        scratch = column_scratch(self.similar.values, step)
        for start in range(0, columns, step):
            stop = min(start + step, columns)
            yield self.block(start, stop, scratch[:, : stop - start])

    def gradient(
        self,
        start: int,
        stop: int,
        out: Tensor,
        log_sum: Tensor,
        row_weights: Tensor,
        even: float,
        right: float,
    ) -> Tensor:
        """d losses / d similarities of these columns, written to `out`, `(N, stop - start)`.

        Args:
            start: first column.
            stop: one behind the last.
            out: where they go; returned.
            log_sum: `(N,)`, over all classes.
            row_weights: `(N,)`, d of whatever is minimised / d loss of the row.
            even: share of the label that every class has (smoothing / classes).
            right: share that the right class has on top of it.
        """
        probabilities = self.block(start, stop, out).sub_(log_sum[:, None]).exp_()
        gradient = probabilities.sub_(even) if even else probabilities
        target = self.target
        place, here = self._place(start, stop)
        at_right = (gradient.gather(1, place) - right) * target.slope[:, None]
        if target.threshold is not None and target.pace is not None:
            values = self.similar.values[:, start:stop]
            _, slope = curricular_negatives(values, target.threshold[:, None], target.pace)
            gradient *= slope
        gradient.scatter_(1, place, torch.where(here, at_right, gradient.gather(1, place)))
        return gradient.mul_((row_weights * self.scale)[:, None])


def _log_sum_in_place(block: Tensor) -> Tensor:
    """`torch.logsumexp(block, dim=1)` without a copy of the block, which is overwritten."""
    largest = block.amax(dim=1)
    return block.sub_(largest[:, None]).exp_().sum(dim=1).log_().add_(largest)


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, weight: Tensor, logits: MarginLogits, smoothing: float
    ) -> Tensor:
        log_sum = logits.log_sum()
        even = smoothing / logits.similar.values.shape[1]
        # Saved as inputs, so that autograd notices when they change before the backward pass.
        ctx.save_for_backward(embeddings, weight)
        ctx.similar, ctx.log_sum, ctx.even, ctx.right = (
            logits.similar,
            log_sum,
            even,
            1.0 - smoothing,
        )
        ctx.rest = logits.columns, logits.target, logits.scale
        ctx.centers, ctx.normalize = (
            logits.similar.centers,
            logits.similar.inverse_lengths is not None,
        )
        losses = log_sum - ctx.right * logits.target.value * logits.scale
        return losses - even * logits.total() if even else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, weight = ctx.saved_tensors
        similar, ctx.similar = ctx.similar, None
        if similar is None:
            # Differentiated again: the cosines gave their memory to the first gradient.
            similar = similarities(embeddings, weight, ctx.centers, normalize=ctx.normalize)
        logits = MarginLogits(similar, *ctx.rest)

        def of_columns(start: int, stop: int, out: Tensor) -> Tensor:
            return logits.gradient(start, stop, out, ctx.log_sum, gradient, ctx.even, ctx.right)

        of_embeddings, of_weight = similarity_gradients(
            similar, weight, of_columns, of_weight=ctx.needs_input_grad[1]
        )
        return of_embeddings.to(embeddings.dtype), of_weight, None, None


def margin_softmax(
    embeddings: Tensor, weight: Tensor, logits: MarginLogits, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each row, `(N,)`, float32 or float64, differentiable once.

    Args:
        embeddings: `(N, d)`, as given to :func:`visual_search.similarity.similarities`.
        weight: `(classes * centers, d)`, as given to it.
        logits: of these similarities.
        smoothing: share of the label spread over all classes, 0..1, as in
            :func:`torch.nn.functional.cross_entropy`.
    """
    return _MarginSoftmax.apply(embeddings, weight, logits, smoothing)
