"""The parts of an image–text phase, built from its configuration and checked before any writing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from visual_search.cached_features import FrozenFeatures
from visual_search.common.errors import UserError
from visual_search.common.model_config import EmbedSettings
from visual_search.data.augment import build_augmentation
from visual_search.data.datasets import LabelledImages, TrainingImages, check_some_exist
from visual_search.data.images import ImageItem
from visual_search.data.leak_record import Side
from visual_search.data.samplers import TrainingBatches, image_loader
from visual_search.evaluation.identity import identity_of
from visual_search.model.embedder import Architecture, build_embedder
from visual_search.model.freezing import freeze_backbone
from visual_search.phase import Batch, Phase
from visual_search.ranking.store import Features, FeatureSource
from visual_search.text.batches import build_pair_batches
from visual_search.text.config import ClipConfig
from visual_search.text.encoder import DualEncoder
from visual_search.text.first_ru_clip import is_first_ru_clip, load_first_ru_clip
from visual_search.text.objective import ClipLearner
from visual_search.text.pairs import TEST, TRAIN, PairTable, QueryTexts, in_language, read_pairs
from visual_search.text.projection_start import add_class_names, start_from_ridge
from visual_search.text.retrieval import relevance_of
from visual_search.text.search import check_same
from visual_search.text.validation import PairValidator

if TYPE_CHECKING:
    from accelerate import Accelerator

MEASURED_IMAGES = 2048
"""On which the scale of the features is measured."""
FITTED_IMAGES = 200_000
"""That a ridge is fitted to at the most."""


class ClipPhase(Phase):
    """What an image–text phase trains, on what, and what it is measured by."""

    validator = PairValidator
    config: ClipConfig

    def __init__(self, config: ClipConfig, processes: Accelerator) -> None:
        """Read the table of pairs, build both encoders and their loss.

        Raises:
            UserError: when data, weights or settings are not what they should be.
        """
        super().__init__(processes)
        _check(config)
        dataset, pairs = config.dataset, Path(config.dataset.pairs)
        root = Path(dataset.root) if dataset.root else None
        table = read_pairs(pairs, TRAIN, root)
        _, self.test = in_language(read_pairs(pairs, TEST, root), dataset.test_language)
        for part in (table, self.test):
            check_some_exist(part.paths, pairs, root or pairs.parent)
        _check_clusters(config, table)
        self.config, self.texts = config, QueryTexts(table, dataset)
        self.relevance = relevance_of(self.test, dataset.text_column)
        encoder, self.architecture = _encoder(config)
        freeze_backbone(encoder.visual.backbone, config.backbone, dataset.input_size)
        encoder.text.train_last(config.text.trainable_blocks, config.text.train_embeddings)
        if config.train.channels_last:
            encoder.visual.to(memory_format=torch.channels_last)
        self.learner = ClipLearner(encoder, config.loss)
        augment = build_augmentation(
            dataset.augmentations, dataset.input_size, random_erasing=dataset.random_erasing
        )
        labelled = LabelledImages(table.paths, self.texts.groups)
        self.images = TrainingImages(labelled, augment, dataset.input_size, dataset.seed)
        self.data = identity_of(labelled, [Side.of(pairs, root)], [], [config.pretrain_model])
        if dataset.cached_views:
            self.images = FrozenFeatures(self.images, dataset.cached_views)
            self.idle_part = "embedder.backbone.visual."
        self.test_vectors: Tensor | None = None
        """Of the visual tower, `(n, width)`, where it is frozen."""

    def batches(self) -> tuple[TrainingBatches, DataLoader]:
        """What chooses the batches of this process, and what reads them."""
        dataset, table = self.config.dataset, self.texts.table
        who = self.processes.process_index, self.processes.num_processes
        batches = build_pair_batches(dataset, table.clusters, self.texts.groups, *who)
        workers = 0 if dataset.cached_views else dataset.num_workers
        return batches, image_loader(self.images, batches, dataset.seed, workers)

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What the learner takes, of a batch as the loader gives it."""
        (images, labels, indexes), device = batch[:3], self.device
        epoch = int(self.images.epoch)
        chosen = self.texts.chosen(indexes.numpy(), labels.numpy(), epoch)
        tokens = self.learner.embedder.text.tokenize(chosen.texts)
        clusters = self.texts.table.clusters
        images = images.to(device, non_blocking=True)
        if self.config.train.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return (
            images,
            [rows.to(device, non_blocking=True) for rows in tokens],
            None if chosen.owners is None else torch.from_numpy(chosen.owners).to(device),
            labels.to(device),
            torch.from_numpy(chosen.ids).to(device),
            None if clusters is None else torch.from_numpy(clusters)[indexes].to(device),
        )

    def fill_features(self) -> None:
        """Embed what a frozen visual tower sees, once for the whole run."""
        self.learner.to(self.device)
        if isinstance(self.images, FrozenFeatures):
            self.images.fill(self._features(self.images.items()))
        is_frozen = self.config.backbone.trainable_blocks == 0
        if is_frozen and not self.learner.embedder.image_projection.raw:
            self.test_vectors = self._features(self.test.items()).matrix

    def start_weights(self) -> None:
        """Measure the features of a run that starts anew, and set the projections for them.

        From random weights they have to learn from few products what closed forms know at once:
        texts start in the space of their own features, turned at random; images where a ridge
        regression predicts their texts (Hoerl and Kennard 1970), and where the visual tower's
        classifier names them.
        """
        if self.config.pretrain_model:
            return
        encoder, projection = self.learner.embedder, self.config.projection
        encoder.text.fit(self.texts.everything())
        if projection.kind in ("none", "ru-clip"):
            return
        ridge = projection.initial == "ridge"
        most = FITTED_IMAGES if ridge else MEASURED_IMAGES
        chosen = range(0, len(self.images), max(len(self.images) // most, 1))
        vectors = self._image_vectors(chosen)
        encoder.image_projection.standardised.measure(vectors)
        if ridge:
            texts = [self.texts.of(image) for image in chosen]
            start_from_ridge(encoder, vectors, texts, projection.ridge_alpha)
        if projection.class_names == "imagenet":
            if not ridge:  # what the features say beside the names starts at nothing
                for parameter in encoder.image_projection.projection.parameters():
                    torch.nn.init.zeros_(parameter)
            add_class_names(encoder, self.config.backbone.weights, vectors)

    def _image_vectors(self, chosen: range) -> Tensor:
        if isinstance(self.images, FrozenFeatures):
            return self.images.matrix[list(chosen), 0].to(self.device)
        items = [self.images.images.item(i) for i in chosen]
        return self._features(items).matrix.to(self.device)

    def _features(self, items: list[ImageItem]) -> Features:
        """Images as the visual tower sees them, from the store where it saw them before."""
        embedder, folder = self.learner.embedder, Path(self.config.train.feature_cache)
        was_training, plain = embedder.training, EmbedSettings()
        place = folder, self.device, self.processes.is_main_process
        source = FeatureSource(embedder.visual, self.architecture, plain, *place)
        found = source.features(items, "images")
        embedder.train(was_training)
        return found

    def describe(self, name: str) -> str:
        """What is about to be trained, in a sentence."""
        config = self.config
        return (
            f"{name}: {len(self.images)} images of {self.texts.groups.max() + 1} products; "
            f"{config.backbone.name} at {config.dataset.input_size} px and "
            f"{' + '.join(config.text.towers)}, {config.projection.dimension}-d; "
            f"validation: {len(self.test)} images, {len(self.relevance.texts)} texts"
            + (f"; {config.projection.clusters} clusters" if config.projection.clusters > 1 else "")
        )


def _check(config: ClipConfig) -> None:
    dataset, projection, train = config.dataset, config.projection, config.train
    linear = projection.kind == "linear"
    plain = dataset.augmentations == "none" and not dataset.random_erasing
    named = projection.class_names == "imagenet"
    wrong = {
        "train.cache_features is for images with classes: set it to false, and "
        "dataset.cached_views to 1 or more": train.cache_features,
        "dataset.cached_views are of a frozen visual tower: set backbone.trainable_blocks to 0, or "
        "dataset.cached_views to 0": dataset.cached_views and config.backbone.trainable_blocks != 0,
        "dataset.cached_views are crops without other augmentations: set dataset.augmentations to "
        "none and dataset.random_erasing to 0": dataset.cached_views and not plain,
        "backbone.drop_path changes nothing in a frozen tower: set it to 0": (
            dataset.cached_views and config.backbone.drop_path
        ),
        "optim.layer_decay is for one tower: set it to 1 here": config.optim.layer_decay != 1.0,
        "train.whitening has no classes to fit to here: set it to 0": train.whitening,
        "train.whitening_power is of phases of images alone: set it to 0": train.whitening_power,
        f"train.head_epochs is {train.head_epochs}; it must be 0 to {train.epochs}, which is "
        "train.epochs": train.head_epochs > train.epochs,
        "projection.class_names imagenet needs `use` in text.towers and projection.kind linear": (
            named and not (linear and "use" in config.text.towers)
        ),
        "projection.initial ridge needs projection.kind linear": (
            projection.initial == "ridge" and not linear
        ),
        f"projection.kind {projection.kind} takes features as they are: set "
        "projection.feature_noise and projection.feature_dropout to 0": (
            projection.kind in ("none", "ru-clip")
            and (projection.feature_noise or projection.feature_dropout)
        ),
        "projection.kind ru-clip takes other features than those that are kept: set "
        "dataset.cached_views to 0": projection.kind == "ru-clip" and dataset.cached_views,
    }
    for sentence, applies in wrong.items():
        if applies:
            raise UserError(sentence)


def _check_clusters(config: ClipConfig, table: PairTable) -> None:
    clusters = config.projection.clusters
    if clusters <= 1:
        return
    if table.clusters is None:
        raise UserError(
            f"{config.dataset.pairs} has no column 'cluster', which projection.clusters needs: "
            "run dataset/image_text/cluster_texts.py assign on it, or set projection.clusters to 1"
        )
    there = int(np.max(table.clusters)) + 1
    if there > clusters:
        raise UserError(
            f"{config.dataset.pairs} has {there} clusters: set projection.clusters to {there}"
        )


def _encoder(config: ClipConfig) -> tuple[DualEncoder, Architecture]:
    text, projection = config.text, config.projection
    size, backbone = config.dataset.input_size_valid or config.dataset.input_size, config.backbone
    if config.pretrain_model:  # whose weights follow
        backbone, text = replace(backbone, weights="none"), replace(text, weights="none")
    visual, architecture = build_embedder(backbone, size)
    encoder = DualEncoder(visual, architecture.dimension, text, projection)
    if config.pretrain_model and is_first_ru_clip(Path(config.pretrain_model)):
        load_first_ru_clip(encoder, Path(config.pretrain_model))
    elif config.pretrain_model:
        found = check_same(Path(config.pretrain_model), architecture, text, projection)
        encoder.load_state_dict(dict(found.state))
    return encoder, architecture
