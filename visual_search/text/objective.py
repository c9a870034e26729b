"""What is trained on pairs, as one module: both encoders and their loss, with gradient caching."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visual_search.text.config import ContrastiveConfig
from visual_search.text.encoder import DualEncoder
from visual_search.text.losses import ContrastiveLoss


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
        checkpoints. The random draws are the same both times; batch norms see each chunk twice.
        """
        if not self.chunk or len(images) <= self.chunk or not torch.is_grad_enabled():
            return F.normalize(self._images(images).float(), dim=1)
        chunks = images.split(self.chunk)
        parts = [checkpoint(self._images, part, use_reentrant=False) for part in chunks]
        return F.normalize(torch.cat(parts).float(), dim=1)
