"""The parts of an image–text phase, built from its configuration and checked before any writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from visual_search.cached_features import CachedViews, kept_features
from visual_search.common.errors import UserError
from visual_search.common.run_folder import RunFolder
from visual_search.data.augment import build_augmentation
from visual_search.data.datasets import LabelledImages, TrainingImages, check_some_exist
from visual_search.data.images import ImageItem
from visual_search.data.leak_record import Side
from visual_search.data.samplers import TrainingBatches, image_loader
from visual_search.evaluation.identity import Identity, identity_of
from visual_search.model.averaging import ExponentialAverage, WeightSoup
from visual_search.model.embedder import Architecture, build_embedder
from visual_search.model.freezing import freeze_backbone
from visual_search.model.projections import Sample, pca
from visual_search.phase import Batch, Phase
from visual_search.text.batches import build_pair_batches
from visual_search.text.class_names import imagenet_classifier, imagenet_names
from visual_search.text.config import ClipConfig
from visual_search.text.encoder import (
    DualEncoder,
    TextArchitecture,
    build_dual_encoder,
)
from visual_search.text.first_ru_clip import is_first_ru_clip, load_first_ru_clip
from visual_search.text.objective import ClipLearner
from visual_search.text.pairs import TEST, TRAIN, PairTable, QueryTexts, in_language, read_pairs
from visual_search.text.retrieval import Relevance, relevance_of
from visual_search.text.search import check_same
from visual_search.text.towers import in_small_letters
from visual_search.text.validation import PairValidator

MEASURED_IMAGES = 2048
"""On which the scale of the features is measured."""
FITTED_IMAGES = 200_000
"""That a ridge is fitted to at the most."""
NAMES_SHARE = 0.6
"""Length of the class names' answer in the shared space, the texts' own being 1."""
SIZE = 3**-0.5
"""Of a direction in the start's weights: about what a fresh linear layer has."""


@dataclass
class ClipPhase(Phase):
    """What an image–text phase trains, on what, and what it is measured by."""

    config: ClipConfig
    images: TrainingImages
    data: Identity
    texts: QueryTexts
    test: PairTable
    relevance: Relevance
    learner: ClipLearner
    architecture: Architecture
    text_architecture: TextArchitecture
    test_vectors: Tensor | None = None
    """Of the visual tower, `(n, width)`, where it is frozen."""

    def batches(self, rank: int, processes: int) -> tuple[TrainingBatches, DataLoader]:
        """What chooses the batches of this process, and what reads them."""
        dataset, table = self.config.dataset, self.texts.table
        batches = build_pair_batches(dataset, table.clusters, self.texts.groups, rank, processes)
        workers = 0 if dataset.cached_views else dataset.num_workers
        return batches, image_loader(self.images, batches, dataset.seed, workers)

    def inputs(self, batch: Batch, device: torch.device) -> tuple[Any, ...]:
        """What the learner takes, of a batch as the loader gives it."""
        images, labels, indexes = batch[:3]
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

    def __post_init__(self) -> None:
        self.idle_part = "embedder.backbone.visual." if self.config.dataset.cached_views else ""

    def validator(
        self,
        run: RunFolder,
        device: torch.device,
        average: ExponentialAverage | None,
        soup: WeightSoup | None,
    ) -> PairValidator:
        """What scores both encoders and keeps the best."""
        return PairValidator(self, run, device, average, soup)

    def fill_features(self, device: torch.device, is_main_process: bool) -> None:
        """Embed what a frozen visual tower sees, once for the whole run."""
        config = self.config
        visual = self.learner.to(device).embedder.visual.eval()
        if isinstance(self.images, CachedViews):
            self.images.fill(
                visual,
                self.architecture.input_size,
                Path(config.train.feature_cache),
                device=device,
                progress=is_main_process,
            )
        if config.backbone.trainable_blocks == 0 and not self.learner.embedder.image_projection.raw:
            self.test_vectors = self._plain_vectors(self.test.items(), device, is_main_process)

    def start_weights(self, device: torch.device, is_main_process: bool) -> None:
        """Measure the features of a run that starts anew, and set the projections for them.

        From random weights they have to learn from few products what closed forms know at once:
        texts start in the space of their own features, turned at random; images where a ridge
        regression predicts their texts (Hoerl and Kennard 1970), where the visual tower's
        classifier names them, or at the sum of both.
        """
        if self.config.pretrain_model:
            return
        encoder, projection = self.learner.embedder, self.config.projection
        weights = self.config.backbone.weights
        encoder.text.fit(self.texts.everything())
        if projection.kind in ("none", "ru-clip"):
            return
        ridge, names = projection.initial == "ridge", projection.class_names == "imagenet"
        most = FITTED_IMAGES if ridge else MEASURED_IMAGES
        chosen = range(0, len(self.images), max(len(self.images) // most, 1))
        vectors = self._image_vectors(chosen, device, is_main_process)
        encoder.image_projection.standardised.measure(vectors)
        if ridge:
            texts = [self.texts.of(image) for image in chosen]
            start_from_ridge(encoder, vectors, texts, projection.ridge_alpha)
            if names:
                add_class_names(encoder, weights, vectors)
        elif names:
            start_from_class_names(encoder, weights, vectors)

    def _image_vectors(self, chosen: range, device: torch.device, is_main_process: bool) -> Tensor:
        if isinstance(self.images, CachedViews):
            return self.images.features[list(chosen), 0].to(device)
        items = [self.images.images.item(i) for i in chosen]
        return self._plain_vectors(items, device, is_main_process).to(device)

    def _plain_vectors(
        self, items: list[ImageItem], device: torch.device, is_main_process: bool
    ) -> Tensor:
        embedder = self.learner.embedder
        was_training = embedder.training
        folder, size = Path(self.config.train.feature_cache), self.architecture.input_size
        found = kept_features(embedder.visual.eval(), items, size, folder, device, is_main_process)
        embedder.train(was_training)
        return found.matrix

    def describe(self, name: str) -> str:
        """What is about to be trained, in a sentence."""
        config = self.config
        return (
            f"{name}: {len(self.images)} images of {self.texts.groups.max() + 1} products; "
            f"{config.backbone.name} at {config.dataset.input_size} px and "
            f"{' + '.join(config.text.towers)}, {self.text_architecture.dimension}-d; "
            f"validation: {len(self.test)} images, {len(self.relevance.texts)} texts"
            + (f"; {config.projection.clusters} clusters" if config.projection.clusters > 1 else "")
            + ("; TEXTS SHUFFLED" if config.dataset.shuffle_texts else "")
        )


def build_clip_phase(config: ClipConfig, is_main_process: bool) -> ClipPhase:
    """Read the table of pairs, build both encoders and their loss.

    Args:
        config: the phase.
        is_main_process: whether this process is the one that prints.

    Raises:
        UserError: when data, weights or settings are not what they should be.
    """
    _check(config)
    dataset = config.dataset
    root = Path(dataset.root) if dataset.root else None
    table = read_pairs(Path(dataset.pairs), TRAIN, root)
    _, test = in_language(read_pairs(Path(dataset.pairs), TEST, root), dataset.test_language)
    for part in (table, test):
        check_some_exist(part.paths, Path(dataset.pairs), root or Path(dataset.pairs).parent)
    _check_clusters(config, table)
    texts = QueryTexts(table, dataset)
    encoder, architecture, text_architecture = _encoder(config)
    freeze_backbone(encoder.visual.backbone, config.backbone, dataset.input_size)
    encoder.text.train_last(config.text.trainable_blocks, config.text.train_embeddings)
    if config.train.channels_last:
        encoder.visual.to(memory_format=torch.channels_last)
    augment = build_augmentation(
        dataset.augmentations, dataset.input_size, random_erasing=dataset.random_erasing
    )
    labelled = LabelledImages(table.paths, texts.groups)
    images = TrainingImages(labelled, augment, dataset.input_size, dataset.seed)
    if dataset.cached_views:
        images = CachedViews(images, dataset.cached_views)
    return ClipPhase(
        config,
        images,
        identity_of(labelled, [Side(Path(dataset.pairs), root)], [], [config.pretrain_model]),
        texts,
        test,
        relevance_of(test, dataset.text_column),
        ClipLearner(encoder, config.loss),
        architecture,
        text_architecture,
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


def _encoder(config: ClipConfig) -> tuple[DualEncoder, Architecture, TextArchitecture]:
    text, projection = config.text, config.projection
    size, backbone = config.dataset.input_size_valid or config.dataset.input_size, config.backbone
    if config.pretrain_model:  # whose weights follow
        backbone, text = replace(backbone, weights="none"), replace(text, weights="none")
    visual, architecture = build_embedder(backbone, size)
    encoder = build_dual_encoder(visual, architecture.dimension, text, projection)
    text_architecture = TextArchitecture.of(text, projection)
    if config.pretrain_model and is_first_ru_clip(Path(config.pretrain_model)):
        load_first_ru_clip(encoder, Path(config.pretrain_model))
    elif config.pretrain_model:
        found = check_same(Path(config.pretrain_model), architecture, text_architecture)
        encoder.load_state_dict(dict(found.state))
    return encoder, architecture, text_architecture


def start_from_class_names(encoder: DualEncoder, weights: str, vectors: Tensor) -> None:
    """Start images where the visual tower's classifier names what it sees.

    A text and a class name of the same meaning get the same place; what the features say beside it
    starts at nothing.

    Args:
        encoder: with the text tower `use` and linear projections; changed in place.
        weights: of the visual tower's checkpoint, with the classifier.
        vectors: `(n, width)`, unit vectors of images.
    """
    image = _linear(encoder.image_projection.projection)
    columns = encoder.text.columns("use")
    basis = nn.init.orthogonal_(vectors.new_empty(image.out_features, len(columns)), SIZE)
    with torch.no_grad():
        nn.init.zeros_(image.weight)
        nn.init.zeros_(image.bias)
    _start_texts(encoder, columns, basis, torch.zeros(len(columns)))
    add_class_names(encoder, weights, vectors)


def start_from_ridge(
    encoder: DualEncoder, vectors: Tensor, texts: Sequence[Sequence[str]], alpha: float
) -> None:
    """Start images where a ridge regression predicts the features of their texts.

    Minimises `sum over images of |mean of its texts' features - W v|^2 + alpha |W|^2`, both sides
    centred. Text features that are nothing before training (the table of n-grams) are left out:
    their columns stay random.

    Args:
        encoder: with linear projections; changed in place.
        vectors: `(n, width)`, unit vectors of the visual tower.
        texts: of each of these images, one or more.
        alpha: the ridge's strength, above 0.

    Raises:
        UserError: when there is no text feature, or they are all alike.
    """
    standardised = encoder.image_projection.standardised
    image = _linear(encoder.image_projection.projection)
    features, means = _text_features(encoder, texts)
    columns = torch.nonzero(features.std(dim=0, correction=0) > 1e-6).flatten()
    if not len(columns):
        raise UserError(
            "projection.initial ridge needs texts whose features differ before training: add "
            "`use` to text.towers, or set projection.initial to random"
        )
    basis = _basis(features[:, columns], image.out_features).double()
    known, targets = features[:, columns].double(), means[:, columns].double()
    inputs = vectors.cpu().double()
    mean, centre = targets.mean(dim=0), inputs.mean(dim=0)
    inputs = inputs - centre
    gram = inputs.T @ inputs + alpha * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    fitted = torch.linalg.solve(gram, inputs.T @ (targets - mean))
    # As long as the texts, on average, so that class names weigh the same beside both.
    lengths = (known - mean).norm(dim=1).mean()
    fitted = fitted * (lengths / (inputs @ fitted).norm(dim=1).mean().clamp(min=1e-12))
    weight = basis @ fitted.T
    with torch.no_grad():
        image.weight.copy_(weight * standardised.scale.cpu().double())
        image.bias.copy_(-(weight @ (centre - standardised.mean.cpu().double())))
    _start_texts(encoder, columns, basis, mean)


def add_class_names(encoder: DualEncoder, weights: str, vectors: Tensor) -> None:
    """Add the visual tower's classifier to a start that has set the texts already.

    Args:
        encoder: after :func:`start_from_ridge`, with the text tower `use`; changed in place.
        weights: of the visual tower's checkpoint, with the classifier.
        vectors: `(n, width)`, unit vectors of images.
    """
    projection = _linear(encoder.text_projections()[0])
    basis = projection.weight.detach()[:, encoder.text.columns("use")]
    image = encoder.image_projection
    assert image.names is not None
    named = torch.from_numpy(
        encoder.text.part("use").encoder.encode(in_small_letters(imagenet_names()))
    )
    classifier = imagenet_classifier(weights).to(vectors.device)
    image.names.fit(classifier, named.to(vectors.device), vectors)
    with torch.no_grad():
        _linear(image.name_projection).weight.copy_(NAMES_SHARE * basis)


def _start_texts(encoder: DualEncoder, columns: Tensor, basis: Tensor, mean: Tensor) -> None:
    """Set these columns of the text projections, and where `mean` is to be."""
    for projection in map(_linear, encoder.text_projections()):
        with torch.no_grad():
            projection.weight[:, columns.to(projection.weight.device)] = basis.to(projection.weight)
            projection.bias.copy_(-(basis.to(projection.weight) @ mean.to(projection.weight)))


def _basis(features: Tensor, dimension: int) -> Tensor:
    """Rows of the features' space that become dimensions of the shared one, `(dimension, c)`.

    Where they all fit, inner products are kept; else those of the principal components.
    """
    width = features.shape[1]
    if width <= dimension:
        return nn.init.orthogonal_(torch.empty(dimension, width), SIZE)
    weight = pca(Sample(features, torch.zeros(len(features))), dimension).weight
    return SIZE * weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _text_features(encoder: DualEncoder, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Of the distinct texts, `(m, t)`, and the mean of each image's, `(n, t)`; on the CPU."""
    numbers: dict[str, int] = {}
    pairs = [
        (row, numbers.setdefault(t, len(numbers))) for row, own in enumerate(texts) for t in own
    ]
    features = encoder.text_features(list(numbers))
    image, text = torch.tensor(pairs).T
    sums = torch.zeros(len(texts), features.shape[1]).index_add_(0, image, features[text])
    return features, sums / torch.bincount(image, minlength=len(texts))[:, None]


def _linear(module: nn.Module | None) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module
