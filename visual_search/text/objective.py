"""What is trained on pairs, as one module: both encoders and their loss, with gradient caching.

`similarities[i, j]` is the cosine of image i and text j times a scale. Images and texts may have
more than one positive in a batch: a name that two products share is right for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visual_search.losses.gathering import gather_constant, gather_rows
from visual_search.text.config import ContrastiveConfig
from visual_search.text.encoder import DualEncoder

LARGEST_SCALE = 100.0
"""CLIP's limit of the learnt scale (Radford et al. 2021, section 2.5)."""


def infonce(similarities: Tensor, positives: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean of the cross-entropies image → text and text → image (Radford et al. 2021, figure 3).

    Several positives share the target evenly (Khosla et al. 2020, equation 2); with one
    each this is open_clip's `ClipLoss`.

    Args:
        similarities: `(n, n)`, scaled cosines.
        positives: `(n, n)`, bool, with a true value in every row and column.
        smoothing: share of the target given to all pairs alike, 0..1.

    Returns:
        A scalar.
    """
    rows = _row_entropy(similarities, positives, smoothing)
    return (rows + _row_entropy(similarities.T, positives.T, smoothing)) / 2


def _row_entropy(similarities: Tensor, positives: Tensor, smoothing: float) -> Tensor:
    target = positives.to(similarities.dtype)
    target = target / target.sum(dim=1, keepdim=True)
    target = target * (1 - smoothing) + smoothing / target.shape[1]
    return -(target * similarities.log_softmax(dim=1)).sum(dim=1).mean()


class ContrastiveLoss(nn.Module):
    """The loss of a batch that is spread over processes, with its learnt temperature."""

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.label_smoothing = config.label_smoothing
        start = torch.tensor(-math.log(config.temperature))
        self.log_scale = nn.Parameter(start, config.learn_temperature)
        # Of a loss that is gone; half-finished trainings have it in their state.
        self.bias = nn.Parameter(torch.tensor(-10.0), requires_grad=False)

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines, a scalar, at most :data:`LARGEST_SCALE`."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def forward(self, images: Tensor, texts: Tensor, groups: Tensor, text_ids: Tensor) -> Tensor:
        """The loss over the rows of all processes, a scalar, the same in each.

        Args:
            images: `(n, d)`, unit vectors, of this process.
            texts: `(n, d)`, unit vectors, row by row the images' texts.
            groups: `(n,)`, int64: equal where images show the same product.
            text_ids: `(n,)`, int64: equal where the texts are the same.
        """
        images, texts = gather_rows(images.float()), gather_rows(texts.float())
        groups, text_ids = gather_constant(groups), gather_constant(text_ids)
        positives = (groups[:, None] == groups) | (text_ids[:, None] == text_ids)
        return infonce(self.scale * images @ texts.T, positives, self.label_smoothing)


class ClipLearner(nn.Module):
    """Both encoders and their loss, so that any parallel wrapper fits round all of it."""

    def __init__(self, embedder: DualEncoder, loss: ContrastiveConfig) -> None:
        super().__init__()
        self.embedder, self.pairs = embedder, ContrastiveLoss(loss)
        # The loop asks for a classification head; here is none.
        self.head = None
        self.cluster_weight, self.chunk = loss.cluster_weight, loss.chunk
        self._images: Callable[[Tensor], Tensor] = embedder.features

    def compile_features(self) -> None:
        """Run the image side through torch.compile in training; validation stays eager."""
        self._images = torch.compile(self.embedder.features)

    def forward(
        self,
        images: Tensor,
        tokens: Sequence[Tensor],
        owners: Tensor | None,
        groups: Tensor,
        text_ids: Tensor,
        clusters: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Of :meth:`DualEncoder.features` images, of :meth:`DualEncoder.text_vectors` tokens and
        owners, of :class:`ContrastiveLoss` groups and text ids; `clusters`, `(n,)`, int64, of the
        texts, where there are projections for each.
        """
        seen = self._embed_images(images)
        read, logits = self.embedder.text_vectors(tokens, owners, len(images))
        loss = self.pairs(seen, read, groups, text_ids)
        if logits is None or clusters is None:
            return loss
        entropy = F.cross_entropy(logits.float(), clusters)
        # The contrastive loss is the mean of two cross-entropies, image → text and back.
        weight = self.cluster_weight
        return (2 * loss + weight * entropy) / (2 + weight)

    def _embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors, chunk by chunk where memory has to be saved.

        Each chunk's activations are dropped and computed again in the backward pass, when the
        gradient of its vectors is known: what gradient caching does (Gao et al., "Scaling Deep
        Contrastive Learning Batch Size under Memory Limited Setup", 2021), on autograd's own
        checkpoints. The random draws are the same both times.
        """
        if not self.chunk or len(images) <= self.chunk or not torch.is_grad_enabled():
            return F.normalize(self._images(images).float(), dim=1)
        chunks = images.split(self.chunk)
        parts = [checkpoint(self._images, part, use_reentrant=False) for part in chunks]
        return F.normalize(torch.cat(parts).float(), dim=1)
