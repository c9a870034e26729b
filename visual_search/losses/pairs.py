"""Losses over pairs of unit embeddings, anchors and references.

A loss over pairs reaches the embeddings through the cosines alone, so all it has to give is its
value for each anchor and the derivative of that with respect to each cosine: the weight of the
pair, in the words of Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep
Metric Learning" (CVPR 2019), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Of multi-similarity, as in the paper: sharpness among positives and among negatives, and by how
# much a rival's cosine may be off for a pair to count.
_ALPHA, _BETA, _SLACK = 2.0, 50.0, 0.1
# Where at most this share of the references weighs anything, only those are multiplied.
_FEW = 0.5


PairLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(cosines, positive, negative) -> (losses (a,), weights (a, r))`, all three inputs `(a, r)`: the
cosine of each anchor to each reference, and whether they are images of one class or of two. A pair
that is neither is left out. Weights are d losses[i] / d cosines[i, j]."""


def contrastive(
    cosines: Tensor, positive: Tensor, negative: Tensor, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Positives cost 1 - s; negatives with s above the threshold cost s; the sum for an anchor.

    Wang et al., "Cross-Batch Memory for Embedding Learning" (CVPR 2020), section 3.1, in the
    form of the authors' code, on cosines s.

    Args, returns: as :data:`PairLoss`; and the cosine above which negatives count, -1..1.
    """
    near = negative & (cosines > threshold)
    # As bytes, since turning truth values into numbers is five times as slow on a CPU.
    weights = near.view(torch.uint8).to(cosines.dtype).masked_fill_(positive, -1.0)
    # Over positives and near negatives, weight * s is -s and s; the ones of 1 - s are counted.
    ones = positive.sum(dim=1, dtype=cosines.dtype)
    return torch.linalg.vecdot(weights, cosines) + ones, weights


def multi_similarity(
    cosines: Tensor, positive: Tensor, negative: Tensor, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Soft sums over the positives and negatives that are hard for their anchor.

    `log(1 + sum_P exp(-2 (s - base))) / 2 + log(1 + sum_N exp(50 (s - base))) / 50`: Wang et al.
    (2019), equation 15. Of the pairs, only those count that their rivals challenge: positives
    below the nearest negative + 0.1, negatives above the farthest positive - 0.1 (equations 11
    and 12). Nothing flows through that choice.

    Args, returns: as :data:`PairLoss`; and base, the cosine round which both turn.
    """
    farthest = cosines.masked_fill(~positive, math.inf).amin(dim=1, keepdim=True)
    nearest = cosines.masked_fill(~negative, -math.inf).amax(dim=1, keepdim=True)
    hard_positive = positive & (cosines < nearest + _SLACK)
    hard_negative = negative & (cosines > farthest - _SLACK)
    of_positive, pull = _soft_sum(cosines - threshold, hard_positive, -_ALPHA)
    of_negative, push = _soft_sum(cosines - threshold, hard_negative, _BETA)
    return of_positive + of_negative, push - pull


def _soft_sum(cosines: Tensor, chosen: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """log(1 + sum exp(slope * s)) / |slope|, `(a,)`, and each exp over 1 + sum."""
    exponents = (cosines * slope).masked_fill(~chosen, -math.inf)
    largest = exponents.amax(dim=1, keepdim=True).clamp(min=0.0)
    shares = (exponents - largest).exp()
    total = shares.sum(dim=1, keepdim=True) + (-largest).exp()
    return (total.log() + largest).squeeze(1) / abs(slope), shares / total


PAIR_LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "contrastive": contrastive,
    "multi-similarity": multi_similarity,
}
"""Losses over pairs by name: each a :data:`PairLoss` that takes `threshold`, a cosine between near
and far."""


@dataclass(frozen=True)
class Samples:
    """Embedded images that are compared with others."""

    embeddings: Tensor
    """`(n, d)`, unit vectors."""
    labels: Tensor
    """`(n,)`, int64, any; 0 is a class like the others."""
    ids: Tensor
    """`(n,)`, int64: which image. Two embeddings of one image are never a pair, while two images
    that look the same to the last bit are."""


def weighted_rows(weights: Tensor, rows: Tensor) -> Tensor:
    """`weights @ rows`, for weights that are mostly zero in whole columns.

    Negatives beyond a threshold are few once training has begun; reading only their rows halves
    the work of a step. On a GPU, which would have to stop and count them, it is the product.
    """
    if rows.device.type == "cpu":
        used = weights.any(dim=0).nonzero().squeeze(1)
        if len(used) <= _FEW * len(rows):
            return weights[:, used] @ rows[used]
    return weights @ rows


class _Pairs(torch.autograd.Function):
    """Value and gradient at once: one `(a, r)` matrix of cosines, one of weights, no graph."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, references: Tensor, masks: tuple[Tensor, Tensor], loss: PairLoss
    ) -> Tensor:
        with torch.autocast(anchors.device.type, enabled=False):
            losses, weights = loss(anchors @ references.T, *masks)
            of_anchors, of_references = ctx.needs_input_grad[:2]
            ctx.save_for_backward(
                weighted_rows(weights, references) / len(anchors) if of_anchors else None,
                weights.T @ anchors / len(anchors) if of_references else None,
            )
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        first, second = (None if rows is None else rows * gradient for rows in ctx.saved_tensors)
        return first, second, None, None


def pair_loss(loss: PairLoss, anchors: Samples, references: Samples) -> Tensor:
    """The mean over the anchors of a loss over their pairs with all references, a scalar.

    Computed in float32 at least, whatever autocast says: negatives are told from near ones by a
    threshold, and bfloat16 has 256 steps between 0.5 and 1.

    Args:
        loss: such as one of :data:`PAIR_LOSSES`.
        anchors: `(a, d)`.
        references: `(r, d)`; may be the anchors. Gradients flow to both, where they are wanted.
    """
    same = anchors.labels[:, None] == references.labels
    other_image = anchors.ids[:, None] != references.ids
    masks = (same & other_image, ~same & other_image)
    rows = (part.embeddings for part in (anchors, references))
    wide = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in rows)
    return _Pairs.apply(*wide, masks, loss)
