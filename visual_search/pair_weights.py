"""What a pair of embeddings costs, as a function of its cosine, and how much it weighs.

A loss over pairs reaches the embeddings through the cosines alone, so all it has to give is its
value for each anchor and the derivative of that with respect to each cosine: the weight of the
pair, in the words of Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep
Metric Learning" (CVPR 2019), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

PairLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(cosines, positive, negative) -> (losses (a,), weights (a, r))`, all three inputs `(a, r)`: the
cosine of each anchor to each reference, and whether they are photos of one class or of two. A pair
that is neither is left out. Weights are d losses[i] / d cosines[i, j]."""


class Contrastive:
    """Positives cost 1 - s; negatives with s above the threshold cost s; the sum for an anchor.

    Wang et al., "Cross-Batch Memory for Embedding Learning" (CVPR 2020), section 3.1, in the
    form of the authors' code, on cosines s.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        """
        Args:
            threshold: cosine above which negatives count, -1..1.
        """
        self.threshold = threshold

    def __call__(
        self, cosines: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        near = negative & (cosines > self.threshold)
        # As bytes, since turning truth values into numbers is five times as slow on a CPU.
        weights = near.view(torch.uint8).to(cosines.dtype).masked_fill_(positive, -1.0)
        # Over positives and near negatives, weight * s is -s and s; the ones of 1 - s are counted.
        ones = positive.sum(dim=1, dtype=cosines.dtype)
        return torch.linalg.vecdot(weights, cosines) + ones, weights


class MultiSimilarity:
    """Soft sums over the positives and negatives that are hard for their anchor.

    `log(1 + sum_P exp(-alpha (s - base))) / alpha + log(1 + sum_N exp(beta (s - base))) / beta`:
    Wang et al. (2019), equation 15. Of the pairs, only those count that their rivals challenge:
    positives below the nearest negative + `slack`, negatives above the farthest positive -
    `slack` (equations 11 and 12). Nothing flows through that choice.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, slack: float = 0.1
    ) -> None:
        """
        Args:
            alpha: sharpness among positives, above 0.
            beta: sharpness among negatives, above 0.
            base: cosine round which both turn; 0.5 as in the authors' code.
            slack: epsilon; infinity takes all pairs of an anchor that has both kinds.
        """
        self.alpha, self.beta, self.base, self.slack = alpha, beta, base, slack

    def __call__(
        self, cosines: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        farthest = cosines.masked_fill(~positive, math.inf).amin(dim=1, keepdim=True)
        nearest = cosines.masked_fill(~negative, -math.inf).amax(dim=1, keepdim=True)
        # Without rivals no pair is hard, whatever the slack.
        challenged = farthest.isfinite() & nearest.isfinite()
        hard_positive = positive & (cosines < nearest + self.slack) & challenged
        hard_negative = negative & (cosines > farthest - self.slack) & challenged
        of_positive, pull = self._soft_sum(cosines, hard_positive, -self.alpha)
        of_negative, push = self._soft_sum(cosines, hard_negative, self.beta)
        return of_positive + of_negative, push - pull

    def _soft_sum(self, cosines: Tensor, chosen: Tensor, slope: float) -> tuple[Tensor, Tensor]:
        """log(1 + sum exp(slope * (s - base))) / |slope|, `(a,)`, and each exp over 1 + sum."""
        exponents = ((cosines - self.base) * slope).masked_fill(~chosen, -math.inf)
        largest = exponents.amax(dim=1, keepdim=True).clamp(min=0.0)
        shares = (exponents - largest).exp()
        total = shares.sum(dim=1, keepdim=True) + (-largest).exp()
        return (total.log() + largest).squeeze(1) / abs(slope), shares / total


PAIR_LOSSES: dict[str, Callable[[float], PairLoss]] = {
    "contrastive": Contrastive,
    "multi-similarity": lambda threshold: MultiSimilarity(base=threshold),
}
"""Losses over pairs by name, each from a cosine between near and far."""
