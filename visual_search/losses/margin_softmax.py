"""Softmax cross-entropy with a margin, fused with the product that makes the logits.

One autograd function from embeddings and class centres to a loss for each row, its gradient in
closed form: with logits z = s * f(cos), probabilities p and targets q (smoothed labels),
d loss / d cos = s * f'(cos) * (p - q), which :meth:`MarginLogits.gradients` takes on
to embeddings and centres. Between forward and backward only the cosines are kept, `N * classes`
numbers; logits and probabilities live for one block of classes at a time. Work and traffic are
those of the products.

Roofline, for N embeddings, K centres and d dimensions: three products (cosines, gradient of the
embeddings, gradient of the centres) of 2 * N * K * d operations each, and K * d numbers that are
read twice and whose gradient is written once (4 * K * d * 4 bytes with what a write reads first).
For N = 64, K = 100,000, d = 512 that is 19.7 GFLOP and 0.8 GB. Autograd through `normalize(W)`
adds a normalised copy of the centres, its gradient and several passes over both, all of it memory
traffic. Here a block of centres is measured, multiplied and differentiated while it is in cache:
the cosines are those of the raw centres, their columns scaled by 1 / |w|.

Everything is computed in float32 at least, whatever autocast says: at s = 30 the step of bfloat16
below a cosine of 1 is 0.12 of a logit, and 5 degrees of angle. The products are a small share of
a training step on any device that has fast half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from visual_search.losses.gathering import (
    gather_constant,
    own_rows,
    processes,
    sum_over_processes,
)
from visual_search.losses.margins import curricular_negatives

# A block of centres of this many bytes stays in the cache between its uses, and is large enough
# for threads to be worth waking; on a GPU, launching few kernels matters more.
_CACHED_BYTES = 8 << 20
_GPU_BYTES = 256 << 20


@dataclass(frozen=True)
class Similarities:
    """Of each embedding to the nearest centre of each class, and what their gradient needs."""

    values: Tensor
    """`(N, classes)`; cosines up to rounding, or plain inner products."""
    winners: Tensor | None
    """`(N, classes)`, uint8: which centre of the class was nearest; None where each has one."""
    units: Tensor
    """`(N, d)`: the embeddings at length 1, or as they came."""
    inverse_lengths: Tensor | None
    """`(N,)`: 1 / length of each embedding; None without normalisation."""
    inverse_centers: Tensor | None
    """`(classes, centers)`: 1 / length of each centre; None without normalisation."""
    picked: Tensor | None
    """`(classes,)`, int64: the classes of the weight that stand in the columns; None: all."""
    centers: int
    """Centres of each class."""
    reserved: Tensor | None
    """`(classes, centers * d)`, where the gradient of the centres goes; its rows hold the values
    until then, which saves a tenth of the memory of a step."""


def _blocks(
    weight: Tensor, centers: int, picked: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[int, int, Tensor]]:
    """Runs of columns and their centres: `start, stop, (stop - start, centers, d)`."""
    by_class = weight.detach().view(-1, centers, weight.shape[1])
    classes = len(by_class) if picked is None else len(picked)
    step = _classes_of_block(weight, centers, dtype)
    for start in range(0, classes, step):
        stop = min(start + step, classes)
        block = by_class[start:stop] if picked is None else by_class[picked[start:stop]]
        yield start, stop, block.to(dtype)


def _classes_of_block(weight: Tensor, centers: int, dtype: torch.dtype) -> int:
    of_class = centers * weight.shape[1] * dtype.itemsize
    return max(1, (_CACHED_BYTES if weight.device.type == "cpu" else _GPU_BYTES) // of_class)


def _column_scratch(values: Tensor, columns: int) -> Tensor:
    """Room for `columns` columns of `values`, `(N, columns)`, a column's numbers adjacent.

    Blocks of logits and gradients are written to the same room one after the other: fresh tensors
    of a megabyte each would fragment the heap by a tenth of what the gradient itself takes.
    """
    return values.new_empty(columns, len(values)).T


def _inverse(lengths: Tensor) -> Tensor:
    # A vector without length has no direction: its cosines are 0, and so are its gradients.
    return torch.where(lengths > 1e-12, 1.0 / lengths, torch.zeros_like(lengths))


@torch.no_grad()
def similarities(
    embeddings: Tensor,
    weight: Tensor,
    centers: int = 1,
    *,
    normalize: bool = True,
    picked: Tensor | None = None,
    reserve: bool = False,
) -> Similarities:
    """Similarity of each embedding to the nearest centre of each class, outside of autograd.

    The values lie class by class in memory, the shape in which they are made and used.

    Args:
        embeddings: `(N, d)`, of any length and floating type.
        weight: `(classes * centers, d)`, a class's centres in adjacent rows, of any length.
        centers: centres of each class, 1..255.
        normalize: cosines; otherwise inner products.
        picked: `(columns,)`, int64, the classes to compare with; None is all of them.
        reserve: keep the values, where they fit, in the memory of the centres' gradient, which
            will be wanted.
    """
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, weight.dtype), torch.float32)
    with torch.autocast(embeddings.device.type, enabled=False):
        units, inverse_lengths = embeddings.to(dtype), None
        if normalize:
            inverse_lengths = _inverse(units.norm(dim=1))
            units = units * inverse_lengths[:, None]
        classes = len(weight) // centers if picked is None else len(picked)
        reserved, wide = None, centers * weight.shape[1]
        if reserve and len(units) <= wide and weight.dtype == dtype:
            reserved = units.new_empty(classes, wide)
        room = units.new_empty(classes, len(units)) if reserved is None else reserved
        values = room[:, : len(units)].T
        inverse = units.new_empty(classes, centers) if normalize else None
        winners = None
        if centers > 1:
            winners = units.new_zeros((classes, len(units)), dtype=torch.uint8).T
        for start, stop, block in _blocks(weight, centers, picked, dtype):
            nearest = values.T[start:stop]
            if inverse is not None:
                inverse[start:stop] = _inverse(block.norm(dim=2))
            for center in range(centers):
                product = torch.mm(block[:, center], units.T, out=None if center else nearest)
                if inverse is not None:
                    product *= inverse[start:stop, center, None]
                if winners is not None and center:
                    winners.T[start:stop].masked_fill_(product > nearest, center)
                    torch.maximum(nearest, product, out=nearest)
    return Similarities(values, winners, units, inverse_lengths, inverse, picked, centers, reserved)


@dataclass(frozen=True)
class MarginLogits:
    """Logits block by block; the whole matrix of them never exists.

    No gradient flows through what the margin made of the right class of each row.
    """

    similar: Similarities
    columns: Tensor
    """`(N,)`, int64: the column of each row's right class; -1 where it has none here."""
    scale: Tensor
    """A scalar."""
    value: Tensor
    """`(N,)`: the margined similarity to the right class."""
    slope: Tensor
    """`(N,)`: its derivative with respect to the similarity."""
    threshold: Tensor | None
    """`(N,)`, of curricularface: wrong classes above it are hard."""
    pace: Tensor
    """A scalar, of curricularface: t."""

    def _place(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Where the right class stands within these columns, `(N, 1)`, and whether it does."""
        # Indices held inside, instead of picking rows, which would wait for the GPU.
        place = self.columns[:, None] - start
        return place.clamp(0, stop - start - 1), (place >= 0) & (place < stop - start)

    def _block(self, start: int, stop: int, out: Tensor) -> Tensor:
        """The logits of these columns, written to `out`, `(N, stop - start)`."""
        values = self.similar.values[:, start:stop]
        if self.threshold is not None:
            values, _ = curricular_negatives(values, self.threshold[:, None], self.pace)
        logits = torch.mul(values, self.scale, out=out)
        place, here = self._place(start, stop)
        right = torch.where(here, (self.value * self.scale)[:, None], logits.gather(1, place))
        return logits.scatter_(1, place, right)

    def _logits(self) -> Iterator[Tensor]:
        """Logits in runs of columns that stay in the cache; each may be overwritten by its user."""
        rows, columns = self.similar.values.shape
        numbers = 1 << 18 if self.columns.device.type == "cpu" else 1 << 26
        step = min(max(1, numbers // max(rows, 1)), max(columns, 1))
        scratch = _column_scratch(self.similar.values, step)
        for start in range(0, columns, step):
            stop = min(start + step, columns)
            yield self._block(start, stop, scratch[:, : stop - start])

    def log_sum(self) -> Tensor:
        """Of each row, the logarithm of the summed exponentials of its logits, `(N,)`."""
        runs = []
        for logits in self._logits():
            # torch.logsumexp without a copy of the block.
            largest = logits.amax(dim=1)
            runs.append(logits.sub_(largest[:, None]).exp_().sum(dim=1).log_().add_(largest))
        # Without columns, as a process may be among many: nothing to sum.
        none = torch.full_like(self.value, -math.inf)
        return torch.logsumexp(torch.stack(runs), dim=0) if runs else none

    def total(self) -> Tensor:
        """Of each row, the sum of its logits, `(N,)`."""
        return sum((block.sum(dim=1) for block in self._logits()), torch.zeros_like(self.value))

    @torch.no_grad()
    def gradients(
        self,
        weight: Tensor,
        log_sum: Tensor,
        row_weights: Tensor,
        even: float,
        right: float,
        *,
        of_weight: bool = True,
        weight_factor: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Of what is minimised with respect to the embeddings and the centres.

        Args:
            weight: the centres that :func:`similarities` was given, unchanged. Their gradient may
                take the place of the values: this is called once.
            log_sum: `(N,)`, over all classes.
            row_weights: `(N,)`, d of whatever is minimised / d loss of the row.
            even: share of the label that every class has (smoothing / classes).
            right: share that the right class has on top of it.
            of_weight: whether the centres need any.
            weight_factor: multiplies the gradient of the centres.

        Returns:
            `(N, d)`, and `(columns * centers, d)` or None; the type is that of the values, and the
            weight's own for the second.
        """
        similar = self.similar
        units, centers = similar.units, similar.centers
        of_units, of_centers = torch.zeros_like(units), None
        shape = (similar.values.shape[1], centers, units.shape[1])
        if of_weight and similar.reserved is not None:
            of_centers = similar.reserved.view(shape)
        elif of_weight:
            of_centers = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        factored = units * weight_factor
        widest = min(_classes_of_block(weight, centers, units.dtype), max(shape[0], 1))
        gradients, products, kept = (_column_scratch(similar.values, widest) for _ in range(3))
        with torch.autocast(units.device.type, enabled=False):
            for start, stop, block in _blocks(weight, centers, similar.picked, units.dtype):
                here = slice(0, stop - start)
                gradient = self._block(start, stop, gradients[:, here])
                self._differentiate(gradient, start, stop, log_sum, even, right)
                gradient.mul_((row_weights * self.scale)[:, None])
                values, product = similar.values[:, start:stop], products[:, here]
                if similar.reserved is not None and centers > 1:
                    values = kept[:, here].copy_(values)  # the first centre's takes their place
                for center in range(centers):
                    part = gradient
                    if similar.winners is not None:
                        part = gradient * (similar.winners[:, start:stop] == center)
                    inverse = None
                    if similar.inverse_centers is not None:
                        inverse = similar.inverse_centers[start:stop, center]
                        radial = torch.mul(part, values, out=product).sum(dim=0)
                        radial *= inverse.square() * weight_factor
                        part *= inverse
                    of_units.addmm_(part, block[:, center])
                    if of_centers is None:
                        continue
                    whole = of_centers[start:stop, center]
                    if whole.dtype == part.dtype:
                        torch.mm(part.T, factored, out=whole)
                    else:
                        whole.copy_(part.T @ factored)
                    if inverse is not None:
                        whole.addcmul_(block[:, center], radial[:, None], value=-1.0)
        if similar.inverse_lengths is not None:
            radial = (of_units * units).sum(dim=1, keepdim=True)
            of_units.addcmul_(units, radial, value=-1.0).mul_(similar.inverse_lengths[:, None])
        return of_units, None if of_centers is None else of_centers.view(-1, units.shape[1])

    def _differentiate(
        self, logits: Tensor, start: int, stop: int, log_sum: Tensor, even: float, right: float
    ) -> None:
        """Turn the logits of these columns into d losses / d (scale * similarities), in place."""
        gradient = logits.sub_(log_sum[:, None]).exp_()  # probabilities
        if even:
            gradient.sub_(even)
        place, here = self._place(start, stop)
        at_right = (gradient.gather(1, place) - right) * self.slope[:, None]
        if self.threshold is not None:
            values = self.similar.values[:, start:stop]
            gradient *= curricular_negatives(values, self.threshold[:, None], self.pace)[1]
        gradient.scatter_(1, place, torch.where(here, at_right, gradient.gather(1, place)))


@dataclass(frozen=True)
class Shard:
    """Where the classes are spread over processes, what the softmax of all of them needs."""

    classes: int
    """That all processes compare with."""
    add_gradient: Callable[[Tensor], None]
    """Takes the gradient of the columns' centres, that of the mean over processes."""


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        weight: Tensor,
        trained: Tensor,
        logits: MarginLogits,
        smoothing: float,
        shard: Shard | None,
    ) -> Tensor:
        ctx.log_sum, ctx.logits, ctx.shard = logits.log_sum(), logits, shard
        classes = shard.classes if shard else logits.similar.values.shape[1]
        if shard:
            ctx.log_sum = torch.logsumexp(gather_constant(ctx.log_sum[None]), dim=0)
        ctx.even, ctx.right = smoothing / classes, 1.0 - smoothing
        # Saved as inputs, so that autograd notices when they change before the backward pass.
        ctx.save_for_backward(embeddings, weight)
        losses = ctx.log_sum - ctx.right * logits.value * logits.scale
        if smoothing:
            total = logits.total()
            losses = losses - ctx.even * (sum_over_processes(total) if shard else total)
        return own_rows(losses, len(embeddings)) if shard else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, weight = ctx.saved_tensors
        shard: Shard | None = ctx.shard
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise RuntimeError("a margin softmax is differentiated once for each forward pass")
        of_embeddings, of_weight = logits.gradients(
            weight,
            ctx.log_sum,
            gather_constant(gradient) if shard else gradient,
            ctx.even,
            ctx.right,
            of_weight=bool(shard) or ctx.needs_input_grad[1],
            weight_factor=1.0 / processes() if shard else 1.0,
        )
        if shard:
            shard.add_gradient(of_weight)
            of_embeddings = own_rows(sum_over_processes(of_embeddings), len(gradient))
            of_weight = None
        return of_embeddings.to(embeddings.dtype), of_weight, None, None, None, None


def margin_softmax(
    embeddings: Tensor,
    weight: Tensor,
    logits: MarginLogits,
    smoothing: float = 0.0,
    shard: Shard | None = None,
) -> Tensor:
    """Cross-entropy of each row, `(N,)`, float32 or float64, differentiable once.

    Args:
        embeddings: `(N, d)`, as given to :func:`similarities`; with a shard, the rows of this
            process among those of all.
        weight: `(classes * centers, d)`, as given to it.
        logits: of these similarities; with a shard, of the rows of all processes.
        smoothing: share of the label spread over all classes, 0..1, as in
            :func:`torch.nn.functional.cross_entropy`.
        shard: where other processes hold further classes, and no gradient goes to `weight`; all
            of them have to call this together.
    """
    # With a shard there is a backward pass for the centres even when the embeddings come from a
    # frozen model.
    always = torch.zeros((), requires_grad=shard is not None)
    return _MarginSoftmax.apply(embeddings, weight, always, logits, smoothing, shard)
