"""Directions in which photos of one product differ count less: fitted, not trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError


class Whitening(nn.Module):
    """Within-class covariance normalisation of unit vectors, as the last layer of an embedder.

    `y = (x / |x| - mean) W`, `W W' = (S + shrinkage * tr(S) / d * I)^-1`, S being the covariance
    of photos round the mean of their class: Hatch, Kajarekar and Stolcke, "Within-class
    covariance normalization for SVM-based speaker recognition" (Interspeech 2006), section 3,
    with the shrinkage of Ledoit and Wolf (2004) by a fixed share.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, width: int) -> None:
        """
        Args:
            width: of the embeddings; until it is fitted, they are only normalised.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("projection", torch.eye(width))

    def forward(self, features: Tensor) -> Tensor:
        """Whitened embeddings `(N, width)`, not of length 1."""
        return (F.normalize(features.float(), dim=1) - self.mean) @ self.projection


def fit_whitening(
    embeddings: Tensor, labels: Tensor, shrinkage: float, weights: Tensor | None = None
) -> Whitening:
    """The whitening of a training set.

    Args:
        embeddings: `(n, width)`, unit vectors.
        labels: `(n,)`, int64; classes of one photo say nothing and are left out.
        shrinkage: above 0; the more, the closer to no whitening at all.
        weights: `(n,)`, above 0, how much each photo counts; None is all alike.

    Raises:
        UserError: when no class has two photos, or the shrinkage is not above 0.
    """
    if shrinkage <= 0:
        raise UserError(
            f"the shrinkage is {shrinkage} (train.whitening, neck.shrinkage); write a number "
            "above 0, such as 2"
        )
    paired = torch.bincount(labels)[labels] > 1
    if not paired.any():
        raise UserError(
            "no training class has two photos, so nothing is known of what varies within one: set "
            "train.whitening to 0, neck.initial to pca"
        )
    everything = embeddings.double()
    counted = torch.ones(len(labels)) if weights is None else weights
    counted = counted.double()[:, None]
    vectors, labels, weight = everything[paired], labels[paired], counted[paired]
    width, classes = vectors.shape[1], int(labels.max()) + 1
    sums = torch.zeros(classes, width, dtype=torch.float64).index_add_(0, labels, weight * vectors)
    totals = torch.zeros(classes, 1, dtype=torch.float64).index_add_(0, labels, weight)
    within = vectors - (sums / totals.clamp(min=1e-12))[labels]
    covariance = (weight * within).T @ within / weight.sum()
    ridge = shrinkage * covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    values, directions = torch.linalg.eigh(covariance + ridge)
    fitted = Whitening(width)
    fitted.mean.copy_((counted * everything).sum(dim=0) / counted.sum())
    fitted.projection.copy_(directions * values.rsqrt())
    return fitted
