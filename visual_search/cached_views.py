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
from visual_search.images import ImageProblem
from visual_search.model import Embedder
from visual_search.progress import progress_bar

# Photos that a frozen tower sees at once.
BATCH = 32


class CachedViews(TrainingImages):
    """As :class:`TrainingImages`, with a view's features in place of pixels.

    Which view is shown depends on (seed, epoch, index) alone. View 0 is the plain photo.
    """

    def __init__(self, photos: TrainingImages, features: Tensor, broken: np.ndarray) -> None:
        """
        Args:
            photos: what the features are of.
            features: `(n, views, width)`, float32.
            broken: `(n,)`, bool: photos that could not be read.
        """
        super().__init__(photos.images, photos.augment, photos.size, photos.seed)
        self.features, self.is_broken = features, broken

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, int]:
        """Features `(width,)`; label; photo; how many unreadable photos came first."""
        wanted = index % len(self)
        for passed_over, chosen in enumerate(self._stand_ins(wanted)):
            if self.is_broken[chosen]:
                continue
            state = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1)
            view = int(state[0]) % self.features.shape[1]
            label = int(self.images.labels[chosen])
            return self.features[chosen, view], label, wanted, passed_over
        raise ValueError("none of the training photos can be read")


def cache_views(
    photos: TrainingImages,
    visual: Embedder,
    weights: str,
    views: int,
    input_size_plain: int,
    folder: Path,
    augmentation: str,
    *,
    device: torch.device,
    workers: int = 0,
    progress: bool = True,
) -> CachedViews:
    """Embed each photo plainly and in `views - 1` augmented views, or read them from the cache.

    Args:
        photos: with their augmentation.
        visual: the frozen tower, on `device`.
        weights: a fingerprint of its weights.
        views: 1 or more.
        input_size_plain: side in pixels at which the plain view is seen.
        folder: of the cache.
        augmentation: its name, a part of the cache's key.
        device: where the tower is.
        workers: processes that read photos.
        progress: whether there are progress bars.
    """
    items = [photos.images.item(i) for i in range(len(photos))]
    settings = {
        "views": views,
        "augmentation": augmentation,
        "sizes": [photos.size, input_size_plain],
        "seed": photos.seed,
        "device": device.type,
    }

    def make() -> Embeddings:
        plain = embed_images(
            visual,
            items,
            input_size_plain,
            device=device,
            settings=EmbedSettings().unmeasured(device.type == "cuda"),
            label="plain views",
            progress=progress,
        )
        stack = [plain.matrix]
        for view in range(1, views):
            label = f"view {view + 1}/{views}"
            stack.append(_view(photos, visual, view, device, workers, label, progress))
        return Embeddings(torch.stack(stack, dim=1).flatten(0, 1), plain.problems)

    found, _ = cached_embeddings(folder, embeddings_fingerprint(weights, items, settings), make)
    return CachedViews(photos, found.matrix.unflatten(0, (-1, views)), _broken(photos, found.problems))


def _broken(photos: TrainingImages, problems: tuple[ImageProblem, ...]) -> np.ndarray:
    unread = {problem.path for problem in problems}
    return np.array([str(path) in unread for path in photos.images.paths])


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
