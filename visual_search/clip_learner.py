"""What image–text training minimises, as one module: photos and tokens in, a loss out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visual_search.contrastive import ContrastiveLoss
from visual_search.dual_encoder import DualEncoder


class ClipLearner(nn.Module):
    """Both encoders and their loss, so that any parallel wrapper fits round all of it."""

    def __init__(
        self,
        embedder: DualEncoder,
        loss: ContrastiveLoss,
        cluster_weight: float = 1.0,
        chunk: int = 0,
    ) -> None:
        """
        Args:
            embedder: what is kept in the end.
            loss: over the batch.
            cluster_weight: of the cluster classifier's cross-entropy.
            chunk: photos whose activations are held at once; 0: all.
        """
        super().__init__()
        self.embedder, self.pairs = embedder, loss
        # The loop asks for a classification head; here is none.
        self.head = None
        self.cluster_weight, self.chunk = cluster_weight, chunk
        self._photos: Callable[[Tensor], Tensor] = embedder.features

    def compile_features(self) -> None:
        """Run the photo side through torch.compile in training; validation stays eager."""
        self._photos = torch.compile(self.embedder.features)

    def forward(
        self,
        photos: Tensor,
        tokens: Sequence[Tensor],
        owners: Tensor | None,
        groups: Tensor,
        text_ids: Tensor,
        clusters: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its parts before weighting.

        Args:
            photos: pixels `(n, 3, H, W)`, or the visual tower's vectors `(n, width)`.
            tokens: of the texts, `m` rows for each tower.
            owners: `(m,)`, the photo of each text; None where text i is photo i's.
            groups: `(n,)`, the product of each photo.
            text_ids: `(n,)`, equal where the texts are.
            clusters: `(n,)`, of the texts, where there are projections for each.
        """
        seen = self._embed_photos(photos)
        read, logits = self.embedder.text_vectors(tokens, owners, len(photos))
        loss = self.pairs(seen, read, groups, text_ids)
        parts = {"contrastive": loss.detach()}
        if logits is None or clusters is None:
            return loss, parts
        entropy = F.cross_entropy(logits.float(), clusters)
        parts["cluster"] = entropy.detach()
        # The contrastive loss is the mean of two cross-entropies, photo → text and back.
        weight = self.cluster_weight
        return (2 * loss + weight * entropy) / (2 + weight), parts

    def _embed_photos(self, photos: Tensor) -> Tensor:
        """Unit vectors, chunk by chunk where memory has to be saved.

        Each chunk's activations are dropped and computed again in the backward pass, when the
        gradient of its vectors is known: what gradient caching does (Gao et al., "Scaling Deep
        Contrastive Learning Batch Size under Memory Limited Setup", 2021), on autograd's own
        checkpoints. The random draws are the same both times.
        """
        if not self.chunk or len(photos) <= self.chunk or not torch.is_grad_enabled():
            return F.normalize(self._photos(photos).float(), dim=1)
        parts = [
            checkpoint(self._photos, part, use_reentrant=False, context_fn=self._contexts)
            for part in photos.split(self.chunk)
        ]
        return F.normalize(torch.cat(parts).float(), dim=1)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Round the first pass, and round the second: batch norms count a photo once."""
        return nullcontext(), statistics_held(self.embedder)


@contextmanager
def statistics_held(module: nn.Module) -> Any:
    """Within it batch norms in training mode leave their running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    moving = [norm for norm in norms if norm.training and norm.track_running_stats]
    kept = [
        (norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone())
        for norm in moving
        if norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_batches_tracked is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, (mean, variance, batches) in zip(moving, kept, strict=True):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                assert norm.num_batches_tracked is not None
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
                norm.num_batches_tracked.copy_(batches)
