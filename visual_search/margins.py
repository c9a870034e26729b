"""Classification heads with an angular margin: they train an embedder, and are then dropped."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def class_margins(
    counts: Tensor, low: float = 0.05, span: float = 0.45, power: float = -0.25
) -> Tensor:
    """A margin for each class: the rarer the class, the larger.

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


class SubCenterArcFace(nn.Module):
    """Additive angular margin softmax with several centres a class.

    Deng et al., "Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces"
    (ECCV 2020), on top of "ArcFace" (CVPR 2019), equation 3: the target's logit is
    `s * cos(theta + m)`, the others' `s * cos(theta)`, theta being the angle to the nearest of
    the class's `centers`.
    """

    margins: Tensor

    def __init__(
        self, dimension: int, margins: Tensor, centers: int = 3, scale: float = 30.0
    ) -> None:
        """
        Args:
            dimension: width of the embeddings.
            margins: `(classes,)`, radians, 0..pi.
            centers: sub-centres of each class; 1 is plain ArcFace.
            scale: s, the radius of the sphere the logits live on.
        """
        super().__init__()
        self.centers, self.scale = centers, scale
        self.weight = nn.Parameter(torch.empty(len(margins) * centers, dimension))
        nn.init.xavier_uniform_(self.weight)
        self.register_buffer("margins", margins.float())

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosine to the nearest centre of each class, `(N, classes)`, -1..1, float32."""
        # In half precision, cosines near 1 would be too coarse for the margin.
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = F.normalize(embeddings.float(), dim=1)
            to_centers = directions @ F.normalize(self.weight.float(), dim=1).T
        return to_centers.view(len(embeddings), -1, self.centers).amax(dim=2).clamp(-1, 1)

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Logits `(N, classes)` with the margin on each row's label.

        Args:
            embeddings: `(N, dimension)`, of any length; they are normalised here.
            labels: `(N,)`, int64, 0..classes-1.
        """
        cosine = self.cosines(embeddings)
        target = cosine.gather(1, labels[:, None]).squeeze(1)
        with_margin = add_angular_margin(target, self.margins[labels])
        return self.scale * cosine.scatter(1, labels[:, None], with_margin[:, None])

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of :meth:`logits`, a scalar."""
        return F.cross_entropy(self.logits(embeddings, labels), labels)


def add_angular_margin(cosine: Tensor, margin: Tensor) -> Tensor:
    """cos(theta + m) from cos(theta), monotonic in theta over 0..pi.

    Past theta = pi - m, where cos(theta + m) would rise again, the line `cos(theta) - m * sin m`
    goes on, as in the ArcFace authors' code. The sine's derivative is infinite at
    cos(theta) = +-1: it is taken from a value held away from there, so gradients stay finite.

    Args:
        cosine: any shape, float32, -1..1.
        margin: radians, of a shape that broadcasts to `cosine`.
    """
    limit = 1.0 - 1e-6
    sine = torch.sqrt(1.0 - cosine.clamp(-limit, limit).square())
    shifted = cosine * torch.cos(margin) - sine * torch.sin(margin)
    return torch.where(
        cosine > torch.cos(math.pi - margin), shifted, cosine - margin * torch.sin(margin)
    )
