"""A run's photos as its model sees them: those it trained on, and those it is judged on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from visual_search.checkpoint import load_checkpoint, save_checkpoint
from visual_search.compression import Sides
from visual_search.config import PhaseConfig
from visual_search.embed import default_device
from visual_search.errors import UserError
from visual_search.evaluate import trimmed
from visual_search.feature_source import Backbone, FeatureSource
from visual_search.frozen import embedded
from visual_search.images import ImageItem
from visual_search.model import Embedder, rebuild_embedder
from visual_search.necks import create_neck
from visual_search.phase_data import dev_set_of, training_images
from visual_search.projections import Sample, start_neck

TRAINING, GALLERY, QUERIES = "training photos", "gallery photos", "query photos"


class RunEmbeddings:
    """Reads a run's config and best model; embeds through the store of features."""

    def __init__(self, run: Path) -> None:
        """
        Args:
            run: a run folder.

        Raises:
            UserError: when it has no config or no model, and for data that is not there.
        """
        self.run, self.config = run, read_config(run)
        self.checkpoint = load_checkpoint(run)
        self.architecture = self.checkpoint.architecture
        self.embedder = rebuild_embedder(self.architecture)
        self.embedder.load_state_dict(dict(self.checkpoint.state))
        self.embedder.eval()
        self.images = training_images(self.config.dataset)
        self.dev_set = dev_set_of(self.config.dataset.dev_set)

    def nested(self) -> bool:
        """Whether prefixes of the embedding were trained."""
        return bool(self.config.margin.nested)

    def sides(self) -> Sides:
        """Unit vectors of the run's own width."""
        if self.config.embedding.views > 1:  # their mean is behind the neck
            return self._sides(self.embedder, nn.Identity())
        return self._sides(Backbone(self.embedder), self.embedder.neck)

    def backbone_sides(self) -> Sides:
        """Unit vectors of the features in front of the neck."""
        return self._sides(Backbone(self.embedder), nn.Identity())

    def write_smaller(self, dimension: int, of_backbone: bool, output: Path | None) -> Path:
        """Write a checkpoint of fewer dimensions.

        Args:
            dimension: of the embedding.
            of_backbone: project the backbone's features; otherwise cut the run's embedding.
            output: folder; None is the run's name with the width added.

        Raises:
            UserError: when the run's embedding cannot be cut, or not there.
        """
        folder = output or self.run.with_name(f"{self.run.name}_{dimension}")
        if folder.exists():
            raise UserError(f"{folder} exists already; name another --output")
        neck = self._projected(dimension) if of_backbone else self._cut(dimension)
        embedder = Embedder(self.embedder.backbone, neck, (0.0,) * 3, (1.0,) * 3)
        embedder.mean, embedder.std = self.embedder.mean, self.embedder.std
        kind = "norm-linear" if of_backbone else self.architecture.neck
        architecture = dataclasses.replace(self.architecture, neck=kind, dimension=dimension)
        facts = {**self.checkpoint.facts, "run": folder.name, "mAP": None}
        facts["cut_from"] = str(self.run)
        save_checkpoint(folder / "best", architecture, embedder.state_dict(), {}, facts)
        return folder

    def _cut(self, dimension: int) -> nn.Module:
        """The neck with the first outputs of its linear layer, and of what follows."""
        if not self.nested():
            raise UserError(
                f"{self.run} was not trained with margin.nested, so a cut embedding would be poor; "
                "train it so, or add --of-backbone"
            )
        if not 0 < dimension < self.architecture.dimension:
            raise UserError(
                f"--write must be below the run's {self.architecture.dimension} dimensions"
            )
        width = next(
            part.in_features for part in self.embedder.neck.modules() if isinstance(part, nn.Linear)
        )
        neck = create_neck(self.architecture.neck, width, dimension)
        state = self.embedder.neck.state_dict()
        neck.load_state_dict(
            {name: value[:dimension] if value.ndim else value for name, value in state.items()}
        )
        return neck.eval()

    def _projected(self, dimension: int) -> nn.Module:
        features = self._features(Backbone(self.embedder), TRAINING)
        neck = create_neck("norm-linear", features.shape[1], dimension)
        labels = torch.from_numpy(self.images.labels)
        start_neck(neck, "pca", Sample(features, labels, self.images.weights()), 0.0)
        return neck.eval()

    def _sides(self, model: Embedder, neck: nn.Module) -> Sides:
        def of(side: str) -> Tensor:
            device = default_device()
            return embedded(neck.to(device), self._features(model, side), device)

        training, gallery, own = of(TRAINING), of(GALLERY), self.dev_set.own
        queries = of(QUERIES) if own is None else gallery[torch.from_numpy(own)]
        return Sides(training, gallery, queries)

    def _features(self, model: Embedder, side: str) -> Tensor:
        source = FeatureSource(
            model,
            self.architecture,
            self.config.embedding,
            Path(self.config.train.feature_cache),
            default_device(),
        )
        return source.features(self._items(side), side).matrix

    def _items(self, side: str) -> Sequence[ImageItem]:
        if side == TRAINING:
            return [self.images.item(row) for row in range(len(self.images))]
        if side == GALLERY:
            return trimmed(self.dev_set.gallery, self.config.embedding)
        return self.dev_set.queries


def read_config(run: Path) -> PhaseConfig:
    """The complete config that a run was trained with.

    Raises:
        UserError: when the folder has none.
    """
    path = run / "config.yml"
    if not path.is_file():
        raise UserError(f"{run} has no config.yml; name a run folder, runs/<name>")

    import jsonargparse

    from visual_search.config_reader import parse_phase

    return parse_phase(jsonargparse.ArgumentParser(), ["--config", str(path)])[1]
