"""Training photos as features that were computed once, in several augmented views.

Where the visual tower is frozen, an epoch over features takes a second instead of minutes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from visual_search.datasets import TrainingImages
from visual_search.embed import Embeddings, embed_images
from visual_search.embed_settings import EmbedSettings
from visual_search.embedding_cache import cached_embeddings, embeddings_fingerprint
from visual_search.errors import UserError
from visual_search.feature_store import weights_fingerprint
from visual_search.model import Embedder
from visual_search.progress import progress_bar

# What is said of a photo of which there is nothing to see.
NOTHING_SEEN = "a grey image is used"
# Photos that a frozen tower sees at once.
BATCH = 32


class CachedViews(TrainingImages):
    """As :class:`TrainingImages`, with a view's features in place of pixels.

    Which view is shown depends on (seed, epoch, index) alone. View 0 is the plain photo.
    """

    def __init__(self, photos: TrainingImages, views: int, augmentation: str) -> None:
        """
        Args:
            photos: with their augmentation; nothing can be read before :meth:`fill`.
            views: of each photo, 1 or more.
            augmentation: its name, a part of the cache's key.
        """
        super().__init__(photos.images, photos.augment, photos.size, photos.seed)
        self.photos, self.views, self.augmentation = photos, views, augmentation
        self.features = torch.zeros(0, views, 0)
        """`(n, views, width)`, float32."""
        self.broken = np.zeros(len(photos), dtype=bool)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, int]:
        """Features `(width,)`; label; photo; how many unreadable photos came first."""
        wanted = index % len(self)
        for passed_over, chosen in enumerate(self.stand_ins(wanted)):
            if self.broken[chosen]:
                continue
            state = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1)
            view = int(state[0]) % self.views
            return self.features[chosen, view], int(self.images.labels[chosen]), wanted, passed_over
        raise UserError("none of the training photos can be read")

    def fill(
        self,
        visual: Embedder,
        input_size: int,
        folder: Path,
        *,
        device: torch.device,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        """Embed each photo plainly and in the augmented views, or read them from the cache.

        Args:
            visual: the frozen tower, in evaluation mode, on `device`.
            input_size: side in pixels at which the plain view is seen.
            folder: of the cache.
            device: where the tower is.
            workers: processes that read photos.
            progress: whether there are progress bars.
        """
        items = [self.images.item(i) for i in range(len(self))]
        settings = {
            "views": self.views,
            "augmentation": self.augmentation,
            "sizes": [self.size, input_size],
            "seed": self.seed,
            "device": device.type,
        }

        def make() -> Embeddings:
            plain = embed_images(
                visual,
                items,
                input_size,
                device=device,
                settings=EmbedSettings().unmeasured(device.type == "cuda"),
                label="plain views",
                progress=progress,
            )
            stack = [plain.matrix]
            for view in range(1, self.views):
                label = f"view {view + 1}/{self.views}"
                stack.append(_view(self.photos, visual, view, device, workers, label, progress))
            return Embeddings(torch.stack(stack, dim=1).flatten(0, 1), plain.problems)

        key = embeddings_fingerprint(weights_fingerprint(visual.state_dict()), items, settings)
        found, _ = cached_embeddings(folder, key, make)
        self.features = found.matrix.unflatten(0, (-1, self.views))
        unread = {p.path for p in found.problems if p.reason.endswith(NOTHING_SEEN)}
        self.broken = np.array([str(item.path) in unread for item in items])


@torch.no_grad()
def _view(
    photos: TrainingImages,
    visual: Embedder,
    number: int,
    device: torch.device,
    workers: int,
    label: str,
    progress: bool,
) -> Tensor:
    """One augmented view of every photo, `(n, width)`."""
    epoch = int(photos.epoch)
    photos.set_epoch(number)
    loader = DataLoader(photos, batch_size=BATCH, num_workers=workers)
    rows = []
    with progress_bar(label, "img", total=len(photos), shown=progress) as bar:
        for pixels, *_ in loader:
            rows.append(visual(pixels.to(device)).cpu())
            bar.update(len(pixels))
    photos.set_epoch(epoch)
    return torch.cat(rows)
