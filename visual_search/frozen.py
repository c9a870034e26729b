"""Training on the features of a frozen backbone: each photo goes through it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from visual_search.common.errors import UserError
from visual_search.config import PhaseConfig
from visual_search.data.datasets import TrainingImages
from visual_search.data.dev_sets import DevSet
from visual_search.data.images import ImageProblem
from visual_search.evaluation.dev_set import Evaluation, evaluate_embeddings
from visual_search.model.embedder import Architecture, Embedder
from visual_search.ranking.rank import trimmed
from visual_search.store import Backbone, Features, FeatureSource

# What load_pixels says of a photo of which there is nothing to see.
_NOTHING = "a grey image is used"


class FrozenFeatures(Dataset):
    """Rows of features in place of photos; a photo that cannot be read has a stand-in.

    It reads as :class:`visual_search.data.datasets.TrainingImages` does, a whole batch at once, which
    is what the loader asks for where there is `__getitems__`.
    """

    def __init__(self, images: TrainingImages) -> None:
        """
        Args:
            images: the photos, in their order; nothing can be read before :meth:`fill`.
        """
        self.images = images
        self.matrix = torch.zeros(0, 0)
        self.labels = torch.from_numpy(images.images.labels)
        self._substitute = torch.arange(len(images))
        self._n_skipped = torch.zeros(len(images), dtype=torch.int64)

    def fill(self, features: Features) -> None:
        """Take the features of all photos.

        Raises:
            UserError: when no photo can be read.
        """
        self.matrix = features.matrix
        broken = np.array([reason.endswith(_NOTHING) for reason in features.reasons])
        if broken.all():
            raise UserError("none of the training photos can be read")
        for row in np.flatnonzero(broken).tolist():
            for n_skipped, other in enumerate(self.images.substitutes(row)):
                if not broken[other]:
                    self._substitute[row], self._n_skipped[row] = other, n_skipped
                    break

    def __len__(self) -> int:
        return len(self.images)

    def shown(self) -> Tensor:
        """The features of all photos, `(n, width)`, stand-ins in the place of unreadable ones."""
        return self.matrix[self._substitute] if self._n_skipped.any() else self.matrix

    def __getitems__(self, indexes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features `(N, width)`, labels, photos, how many unreadable ones came first, `(N,)`."""
        wanted = torch.as_tensor(indexes) % len(self)
        shown = self._substitute[wanted]
        return self.matrix[shown], self.labels[shown], wanted, self._n_skipped[wanted]


def as_it_is(batch: Any) -> Any:
    """What a loader does with a batch that comes whole."""
    return batch


@dataclass
class FrozenPhase:
    """What a phase on cached features has beside its configuration."""

    training: FrozenFeatures
    gallery: Features | None = None
    queries: Features | None = None
    """None where the queries are rows of the gallery."""

    def fill(
        self,
        config: PhaseConfig,
        embedder: Embedder,
        architecture: Architecture,
        dev_set: DevSet,
        device: torch.device,
        progress: bool,
    ) -> None:
        """Embed the training photos and the development set, or read what was kept.

        Args:
            config: of the phase.
            embedder: with the frozen backbone, on `device`.
            architecture: its own.
            dev_set: what validation ranks.
            device: where the backbone runs.
            progress: whether there are progress bars and lines.
        """
        source = FeatureSource(
            Backbone(embedder),
            architecture,
            config.embedding,
            Path(config.train.feature_cache),
            device,
            progress,
        )
        images = self.training.images.images
        items = [images.item(row) for row in range(len(images))]
        self.training.fill(source.features(items, "training photos"))
        gallery = trimmed(dev_set.gallery, config.embedding)
        self.gallery = source.features(gallery, "gallery photos")
        if dev_set.own is None:
            self.queries = source.features(dev_set.queries, "query photos")

    def evaluate(self, neck: nn.Module, dev_set: DevSet, device: torch.device) -> Evaluation:
        """Score the development set as the neck embeds it; its mode is left as it is."""
        assert self.gallery is not None
        gallery = embedded(neck, self.gallery.matrix, device)
        if self.queries is None:
            assert dev_set.own is not None
            queries = gallery[torch.from_numpy(dev_set.own)]
        else:
            queries = embedded(neck, self.queries.matrix, device)
        return evaluate_embeddings(dev_set, gallery, queries, self._problems(dev_set))

    def _problems(self, dev_set: DevSet) -> tuple[ImageProblem, ...]:
        sides = [(self.gallery, dev_set.gallery), (self.queries, dev_set.queries)]
        return tuple(
            ImageProblem(str(item.path), reason)
            for features, items in sides
            if features is not None
            for item, reason in zip(items, features.reasons, strict=True)
            if reason
        )


@torch.no_grad()
def embedded(neck: nn.Module, features: Tensor, device: torch.device) -> Tensor:
    """Unit vectors `(n, dimension)`, on the CPU, of features `(n, width)`."""
    parts = [
        F.normalize(neck(part.to(device)).float(), dim=1).cpu() for part in features.split(8192)
    ]
    return torch.cat(parts)


def check_cacheable(config: PhaseConfig) -> None:
    """Refuse settings that features of plain photos cannot serve.

    Raises:
        UserError: naming the key.
    """
    if config.neck.initial != "random":
        if not config.train.cache_features:
            raise UserError(
                f"neck.initial {config.neck.initial} needs train.cache_features: set it to true"
            )
        if config.pretrain_model:
            raise UserError(
                "pretrain_model brings a neck that is trained already: set neck.initial to random"
            )
    if not config.train.cache_features:
        return
    wrong = {
        "backbone.trainable_blocks must be 0": config.backbone.trainable_blocks != 0,
        "neck.kind must not be none": config.neck.kind == "none",
        "dataset.augmentations must be none": config.dataset.augmentations != "none",
        "dataset.random_erasing must be 0": config.dataset.random_erasing != 0,
        "dataset.mixing.kind must be none": config.dataset.mixing.kind != "none",
        "distillation.run must be empty": bool(config.distillation.run),
        "embedding.flip must be false": config.embedding.flip,
        "embedding.crops must be false": config.embedding.crops,
    }
    for words, applies in wrong.items():
        if applies:
            raise UserError(
                f"train.cache_features trains on features of unchanged photos: {words}, or set it "
                "to false"
            )
