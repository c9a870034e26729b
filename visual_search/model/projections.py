"""Linear projections of frozen features to few dimensions: fitted, and a start for training.

From random weights a projection has to learn from few classes what pretraining knew of all;
from principal components or discriminants it begins where they are and moves little.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError


class Whitening(nn.Module):
    """`y = (x / |x| - mean) W`, fitted behind a trained network, the last layer of an embedder."""

    mean: Tensor
    projection: Tensor

    def __init__(self, width: int, dimension: int = 0) -> None:
        """
        Args:
            width: of the features; until it is fitted, they are only normalised.
            dimension: of what comes out, 0 is the width.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("projection", torch.eye(width, dimension or width))

    def forward(self, features: Tensor) -> Tensor:
        """Whitened embeddings `(N, dimension)`, not of length 1."""
        return (F.normalize(features.float(), dim=1) - self.mean) @ self.projection


def partly_whitening(
    covariance: Tensor, dimension: int, power: float, ridge: float = 0.0
) -> Tensor:
    """Principal directions `(width, min(dimension, width))`, most variance first, scaled, float32.

    Jégou and Chum, "Negative Evidences and Co-occurrences in Image Retrieval" (ECCV 2012), with
    a power of the variances between none and all.

    Args:
        covariance: `(width, width)`, float64.
        dimension: directions kept.
        power: 0 keeps the variances, 1 makes them equal.
        ridge: added to the variances before they are divided by.
    """
    variances, directions = torch.linalg.eigh(covariance)
    variances = variances.flip(0)[:dimension]
    directions = directions.flip(1)[:, :dimension]
    # A direction without any variance holds rounding only.
    used = variances > 1e-9 * variances[0]
    scales = torch.where(used, (variances + ridge).clamp(min=1e-30) ** (-power / 2), 0.0)
    return (directions * scales).float()


def fit_unlabelled(
    embeddings: Tensor,
    dimension: int = 0,
    power: float = 0.5,
    shrinkage: float = 0.0,
    weights: Tensor | None = None,
) -> Whitening:
    """:func:`partly_whitening` round the mean of images whose classes nobody has to know.

    Args:
        embeddings: `(n, width)`, unit vectors.
        dimension: directions kept; 0 is the width.
        power: 0 keeps the variances, 1 makes them equal.
        shrinkage: 0 or more, in mean variances: the more, the closer to no whitening at all.
        weights: `(n,)`, above 0, how much each image counts; None is all alike.

    Raises:
        UserError: for more dimensions than there are features, and for a single image.
    """
    n, width = embeddings.shape
    if not 0 <= dimension <= width:
        raise UserError(f"the whitening's dimension is {dimension}; write 0..{width}, the width")
    if n < 2:
        raise UserError(f"a whitening is fitted to two images or more, not {n}")
    mean, covariance = _moments(embeddings.double(), weights)
    ridge = shrinkage * float(covariance.diagonal().mean())
    fitted = Whitening(width, dimension)
    fitted.mean.copy_(mean)
    fitted.projection.copy_(partly_whitening(covariance, dimension or width, power, ridge))
    return fitted


def fit_whitening(
    embeddings: Tensor, labels: Tensor, shrinkage: float, weights: Tensor | None = None
) -> Whitening:
    """The whitening of a training set: within-class covariance normalisation.

    `W W' = (S + shrinkage * tr(S) / d * I)^-1`, S being the covariance of images round the mean
    of their class: Hatch, Kajarekar and Stolcke, "Within-class covariance normalization for
    SVM-based speaker recognition" (Interspeech 2006), section 3, with the shrinkage of Ledoit and
    Wolf (2004) by a fixed share.

    Args:
        embeddings: `(n, width)`, unit vectors.
        labels: `(n,)`, int64; classes of one image say nothing and are left out.
        shrinkage: above 0; the more, the closer to no whitening at all.
        weights: `(n,)`, above 0, how much each image counts; None is all alike.

    Raises:
        UserError: when no class has two images.
    """
    paired = torch.bincount(labels)[labels] > 1
    if not paired.any():
        raise UserError(
            "no training class has two images, so nothing is known of what varies within one: set "
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


Projection = tuple[Tensor, Tensor]
"""Weight `(dimension, width)` and bias `(dimension,)` of a linear layer, float32; the dimensions
come in the order of the variance they hold."""


def pca(features: Tensor, dimension: int, weights: Tensor | None = None) -> Projection:
    """Principal components: the directions of largest variance round the mean.

    Args:
        features: `(n, width)`.
        dimension: 1..width; those that n images cannot show hold no variance.
        weights: `(n,)`, above 0, how much each image counts; None is all alike.

    Raises:
        UserError: for more dimensions than there are features.
    """
    mean, directions = _components(features.double(), weights, dimension)
    return _unit_length(features, directions.T, -(mean @ directions))


def lda(
    features: Tensor,
    labels: Tensor,
    dimension: int,
    shrinkage: float = 3.0,
    weights: Tensor | None = None,
) -> Projection:
    """Linear discriminants: principal components of features whitened within their classes.

    First the whitening of :func:`fit_whitening`, which makes directions
    in which images of one class differ count less, then the principal components of its results:
    Fukunaga, "Introduction to Statistical Pattern Recognition" (1990), section 10.2, with the
    total scatter, which has the same directions.

    Args:
        features: `(n, width)`, of length 1.
        labels: `(n,)`, int64.
        dimension: 1..width; those that n images cannot show hold no variance.
        shrinkage: of the scatter within classes towards a sphere, above 0; the more, the closer
            to plain principal components.
        weights: `(n,)`, above 0, how much each image counts; None is all alike.

    Raises:
        UserError: as :func:`pca`; when no class has two images.
    """
    fitted = fit_whitening(features, labels, shrinkage, weights)
    mean, projection = fitted.mean.double(), fitted.projection.double()
    whitened = (features.double() - mean) @ projection
    centre, directions = _components(whitened, weights, dimension)
    weight = (projection @ directions).T
    return _unit_length(features, weight, -(weight @ mean) - centre @ directions)


@torch.no_grad()
def start_neck(
    neck: nn.Module,
    features: Tensor,
    labels: Tensor | None = None,
    shrinkage: float = 0.0,
    weights: Tensor | None = None,
) -> None:
    """Set the linear layer of a neck to principal components, or to discriminants of classes.

    Args:
        neck: changed in place; `linear` or `norm-linear`.
        features: `(n, width)`, the backbone's, as they come.
        labels: as :func:`lda` takes them; None asks for :func:`pca`.
        shrinkage: of lda.
        weights: as both take them.

    Raises:
        UserError: for another neck, and where the projection cannot be fitted.
    """
    linear = neck[-1] if isinstance(neck, nn.Sequential) else neck
    if not isinstance(linear, nn.Linear) or linear.bias is None:
        raise UserError(
            f"neck.initial {'pca' if labels is None else 'lda'} sets a linear layer with a bias: "
            "set neck.kind to norm-linear"
        )
    given = neck[:-1](features) if isinstance(neck, nn.Sequential) else features
    if labels is None:
        weight, bias = pca(given, linear.out_features, weights)
    else:
        weight, bias = lda(given, labels, linear.out_features, shrinkage, weights)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _moments(vectors: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean `(width,)` and covariance `(width, width)` of vectors `(n, width)`, float64."""
    counted = torch.ones(len(vectors)) if weights is None else weights
    shares = (counted.double() / counted.double().sum())[:, None]
    mean = (shares * vectors).sum(dim=0)
    centred = vectors - mean
    return mean, (shares * centred).T @ centred


def _components(vectors: Tensor, weights: Tensor | None, dimension: int) -> tuple[Tensor, Tensor]:
    """The mean `(width,)` and the directions `(width, dimension)`, most variance first."""
    width = vectors.shape[1]
    if not 1 <= dimension <= width:
        raise UserError(
            f"{width} features have no projection to {dimension} dimensions: write 1..{width} "
            "(neck.dimension)"
        )
    mean, covariance = _moments(vectors, weights)
    directions = torch.linalg.eigh(covariance)[1].flip(1)[:, :dimension]
    # Eigenvectors have no sign of their own: the largest entry is made positive.
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return mean, directions * largest.sign()


def _unit_length(features: Tensor, weight: Tensor, bias: Tensor) -> Projection:
    """Scaled so that the outputs have a mean square length of 1, as a fresh layer's about have."""
    outputs = features.double() @ weight.T + bias
    scale = outputs.square().sum(dim=1).mean().clamp(min=1e-24).rsqrt()
    return (weight * scale).float(), (bias * scale).float()


@torch.no_grad()
def project_features(neck: nn.Module, features: Tensor, device: torch.device) -> Tensor:
    """Unit vectors `(n, dimension)`, on the CPU, of features `(n, width)`."""
    parts = [
        F.normalize(neck(part.to(device)).float(), dim=1).cpu() for part in features.split(8192)
    ]
    return torch.cat(parts)
