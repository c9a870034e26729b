"""A phase's parts, built from its configuration and checked before anything is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from visual_search.cached_features import FrozenFeatures
from visual_search.common.errors import UserError
from visual_search.config import EmbedSettings, PhaseConfig
from visual_search.data.augment import Mixer, build_augmentation
from visual_search.data.datasets import TrainingImages
from visual_search.data.factory import dev_set_of, dev_sides, training_images, training_sides
from visual_search.data.samplers import TrainingBatches, image_loader, order_of
from visual_search.evaluation.dev_set import SeenDevSet
from visual_search.evaluation.identity import Identity, identity_of, same_classes
from visual_search.model.backbones import feature_width
from visual_search.model.checkpoint import load_checkpoint, plain_state
from visual_search.model.embedder import Architecture, Embedder, build_embedder
from visual_search.model.freezing import freeze_backbone
from visual_search.model.patches import resized_state
from visual_search.model.projections import project_features, start_neck
from visual_search.model.weights import read_state_dict, without_prefix
from visual_search.objective import Learner
from visual_search.ranking.embed import embed_images
from visual_search.ranking.export import load_model
from visual_search.ranking.rank import trimmed
from visual_search.ranking.rerank import named_steps
from visual_search.ranking.store import Backbone, FeatureSource
from visual_search.validation import BestCheckpoint, Validator

if TYPE_CHECKING:
    from accelerate import Accelerator

    from visual_search.text.config import ClipConfig

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Pixels `(N, 3, H, W)` uint8, or features `(N, width)` float32; labels `(N,)`, indexes `(N,)`,
n_skipped `(N,)`."""


class Phase(ABC):
    """What is trained, on what, and what it is judged by: all that the loop knows of a phase."""

    validator: type[BestCheckpoint]
    """What scores the model and keeps the best."""
    config: PhaseConfig | ClipConfig
    images: TrainingImages
    data: Identity
    """What it is trained on and judged by."""
    learner: Any
    """A module with `embedder`, `head`, `pairs` and `compile_features()`; called with what
    :meth:`inputs` gives, it returns the loss."""
    architecture: Architecture
    idle_part: str = ""
    """Prefix of the learner's tensors that are not even run in training."""

    def __init__(self, processes: Accelerator) -> None:
        """
        Args:
            processes: that train together, with a device each; the first one prints.
        """
        self.processes, self.device = processes, processes.device

    @abstractmethod
    def batches(self) -> tuple[TrainingBatches, DataLoader]:
        """What chooses the batches of this process, and what reads them."""

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What the learner takes, of a batch as the loader gives it."""

    @abstractmethod
    def describe(self, name: str) -> str:
        """What is about to be trained, in a sentence."""

    def start_weights(self) -> None:  # noqa: B027 - most phases have nothing to do here
        """Set what of a new run does not start at random or at pretrained weights."""

    def fill_features(self) -> None:  # noqa: B027 - most phases have nothing to do here
        """Embed what a frozen network sees, once for the whole run."""

    def before_step(self, step: int, total: int) -> None:  # noqa: B027
        """Told the number of each optimiser step, from 0, and of how many."""


class ImagePhase(Phase):
    """Images with classes, and a development set to rank."""

    validator = Validator
    config: PhaseConfig

    def __init__(self, config: PhaseConfig, processes: Accelerator) -> None:
        """Read the tables, build the model and its losses.

        Raises:
            UserError: when data, weights or settings are not what they should be.
        """
        super().__init__(processes)
        _check(config)
        self.config, dataset = config, config.dataset
        images = training_images(dataset)
        if (config.margin.weight or config.pairs.name != "none") and not np.ptp(images.labels):
            raise UserError(
                "all training images are of one class, and there is none to tell it from; add "
                "others, or raise dataset.max_classes"
            )
        self.dev_set = dev_set_of(dataset.dev_set)
        embedder, self.architecture = _embedder(config)
        if self.architecture.input_size != dataset.input_size:
            feature_width(embedder.backbone, dataset.input_size, config.backbone.name)
        freeze_backbone(embedder.backbone, config.backbone, dataset.input_size)
        counts = torch.from_numpy(images.counts(images.classes))
        dimension, teacher = self.architecture.dimension, _teacher(config, self.device)
        self.learner = Learner(embedder, dimension, config, counts, teacher)
        self.head_continued = bool(config.pretrain_model) and self._continue_head(
            Path(config.pretrain_model or ""), images.class_names
        )
        if config.train.channels_last:
            embedder.to(memory_format=torch.channels_last)
        augment = build_augmentation(
            dataset.augmentations,
            dataset.input_size,
            random_erasing=dataset.random_erasing,
            views=config.embedding.fits,
        )
        self.images = TrainingImages(images, augment, dataset.input_size, dataset.seed)
        if config.train.cache_features:
            self.images = FrozenFeatures(self.images)
            self.idle_part = "embedder.backbone."
        self.seen: SeenDevSet | None = None
        """The development set's features, where `images` are :class:`FrozenFeatures`."""
        sources = config.pretrain_model, config.distillation.run
        self.data = identity_of(
            images, training_sides(dataset), dev_sides(dataset.dev_set), sources
        )
        mixing = dataset.mixing
        self.mixer = Mixer(mixing.kind, mixing.alpha, mixing.probability)

    def _continue_head(self, source: Path, class_names: Sequence[str]) -> bool:
        """Take over the class centres of the phase before, where they are of the same classes."""
        head = self.learner.head
        if head is None:
            return False
        places = (source / "best", source / "last", source, source.parent)
        found = next((p for p in (q / "head.safetensors" for q in places) if p.is_file()), None)
        same = same_classes(source, class_names)
        state = read_state_dict(found) if found and same is not False else {}
        centers = state.get("weight", state.get("table.weight"))
        fits = centers is not None and head.take_centers(centers)
        words = f"continued from {found}" if fits else "new"
        if not same:
            theirs = "not recorded" if same is None else "others, or in another order"
            words += f"; the classes of {source} are {theirs}"
        if self.processes.is_main_process:
            print(f"class centres: {words}")
        return fits

    def batches(self) -> tuple[TrainingBatches, DataLoader]:
        """What chooses the batches of this process, and what reads them.

        The batches are pixels, labels, indexes, n_skipped: see :class:`TrainingImages`.
        """
        dataset, processes = self.config.dataset, self.processes
        batches = TrainingBatches(
            order_of(dataset.sampler, self.images.images, dataset.batch_size),
            dataset.batch_size,
            dataset.seed,
            rank=processes.process_index,
            world_size=processes.num_processes,
        )
        # Features are in memory: nothing for worker processes to do.
        workers = 0 if self.config.train.cache_features else dataset.num_workers
        return batches, image_loader(self.images, batches, dataset.seed, workers)

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What the learner takes, of a batch as the loader gives it."""
        pixels, labels, indexes = (part.to(self.device, non_blocking=True) for part in batch[:3])
        # All processes alike, whatever each one draws: the head may compare over all of them.
        mixed = () if self.mixer.kind == "none" else self.mixer(pixels, labels)
        pixels = mixed[0] if mixed else pixels
        if self.config.train.channels_last and pixels.ndim == 4:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pixels, labels, indexes, *mixed[1:]

    def start_weights(self) -> None:
        """Start neck and head where `neck.initial` and `margin.imprint` say."""
        neck, images = self.config.neck, self.images.images
        if neck.initial != "random" and isinstance(self.images, FrozenFeatures):
            labels = torch.from_numpy(images.labels) if neck.initial == "lda" else None
            shown, weights = self.images.shown(), images.weights()
            start_neck(self.learner.embedder.neck, shown, labels, neck.shrinkage, weights)
        if self.config.margin.imprint and self.learner.head and not self.head_continued:
            self._imprint_centers()

    def _imprint_centers(self) -> None:
        """Start the head at the classes' mean embeddings; every process computes the same.

        With random centres the first steps drag good pretrained features towards nowhere in
        particular. Each image is embedded once, unaugmented.
        """
        device, images = self.device, self.images.images
        learner = self.learner.to(device)
        embedder, was_training = learner.embedder, learner.embedder.training
        embedder.eval()
        if isinstance(self.images, FrozenFeatures):
            embeddings = project_features(embedder.neck, self.images.shown(), device)
        else:
            embeddings = embed_images(
                embedder,
                [images.item(i) for i in range(len(images))],
                self.config.dataset.input_size,
                device=device,
                settings=EmbedSettings().unmeasured(device.type == "cuda"),
                label="class centres",
                progress=self.processes.is_main_process,
            ).matrix
        embedder.train(was_training)
        assert learner.head is not None
        learner.head.set_centers(embeddings, torch.from_numpy(images.labels))

    def fill_features(self) -> None:
        """Embed training images and development set, or read what was kept of them."""
        if not isinstance(self.images, FrozenFeatures):
            return
        settings, dev_set = self.config.embedding, self.dev_set
        source = FeatureSource(
            Backbone(self.learner.to(self.device).embedder),
            self.architecture,
            settings,
            Path(self.config.train.feature_cache),
            self.device,
            self.processes.is_main_process,
        )
        self.images.fill(source.features(self.images.items(), "training images"))
        items = trimmed(dev_set.gallery, settings)
        gallery, queries = source.features(items, "gallery images"), None
        problems = gallery.problems(items)
        if dev_set.own is None:
            found = source.features(dev_set.queries, "query images")
            queries, problems = found.matrix, problems + found.problems(dev_set.queries)
        self.seen = SeenDevSet(dev_set, gallery.matrix, queries, problems)

    def before_step(self, step: int, total: int) -> None:
        """Let the margin grow."""
        if self.learner.head is not None:
            grown = max(self.config.margin.grow_share * total, 1.0)
            self.learner.head.set_progress(min(step / grown, 1.0))

    def describe(self, name: str) -> str:
        """What is about to be trained, in a sentence."""
        dataset, images = self.config.dataset, self.images.images
        weights = f"weights {self.config.backbone.weights}"
        return (
            f"{name}: {len(self.images)} images of {len(np.unique(images.labels))} classes, "
            f"{self.config.backbone.name} (from {self.config.pretrain_model or weights}) at "
            f"{dataset.input_size} px (validation "
            f"{self.architecture.input_size} px), {self.architecture.dimension}-d; "
            f"validation: {self._validation()}"
            + ("; trains on Product10K's test images too" if dataset.train_on_test else "")
            + ("; backbone frozen, features kept" if self.idle_part else "")
        )

    def _validation(self) -> str:
        dev_set = self.dev_set
        words = f"{len(dev_set.queries)} queries, {len(dev_set.gallery)} gallery images"
        if self.config.dataset.dev_set.table:
            classes = np.unique(dev_set.query_products)
            unseen = np.setdiff1d(classes, self.images.images.class_names)
            words += f" of a table, {len(unseen)} of {len(classes)} classes not in training"
            words += self.data.seen_before(unseen)
        return words + ("" if dev_set.own is None else ", each against all others")


def _check(config: PhaseConfig) -> None:
    """Refuse settings that do not go together, naming the keys."""
    margin, pairs, dataset, train = config.margin, config.pairs, config.dataset, config.train
    neck, named = config.neck, config.neck.initial != "random"
    uncached = {
        "backbone.trainable_blocks must be 0": config.backbone.trainable_blocks != 0,
        "neck.kind must not be none": neck.kind == "none",
        "dataset.augmentations must be none": dataset.augmentations != "none",
        "dataset.random_erasing must be 0": dataset.random_erasing != 0,
        "dataset.mixing.kind must be none": dataset.mixing.kind != "none",
        "distillation.run must be empty": config.distillation.run,
        "embedding must be of one squashed view (views, view_sizes, flip, crops)": (
            not config.embedding.is_plain
        ),
    }
    wrong = {
        f"neck.initial {neck.initial} needs train.cache_features: set it to true": (
            named and not train.cache_features
        ),
        "pretrain_model brings a neck that is trained already: set neck.initial to random": (
            named and config.pretrain_model
        ),
        **{
            f"train.cache_features trains on features of unchanged images: {words}, or set it to "
            "false": train.cache_features and applies
            for words, applies in uncached.items()
        },
        "margin.weight is 0, pairs.name none and distillation.run empty: nothing is left to train "
        "by; set one of them": (
            margin.weight == 0 and pairs.name == "none" and not config.distillation.run
        ),
        "dataset.mixing gives an image two classes, which pairs.name cannot use; set one of the "
        "two to none": pairs.name != "none" and dataset.mixing.kind != "none",
        "train.whitening takes the place of a neck; set neck.kind to none": (
            (train.whitening or train.whitening_power) and neck.kind != "none"
        ),
        f"train.head_epochs must be 0..{train.epochs} (train.epochs)": (
            train.head_epochs > train.epochs
        ),
    }
    for sentence, applies in wrong.items():
        if applies:
            raise UserError(sentence)
    named_steps(config.rerank, [], "rerank")


def _embedder(config: PhaseConfig) -> tuple[Embedder, Architecture]:
    size, backbone = config.dataset.input_size_valid or config.dataset.input_size, config.backbone
    if config.pretrain_model:  # whose weights follow
        backbone = replace(backbone, weights="none")
    embedder, architecture = build_embedder(backbone, size, config.neck)
    if config.pretrain_model:
        earlier = load_checkpoint(Path(config.pretrain_model))
        whitened = (earlier.architecture.neck, architecture.neck) == ("whitening", "none")
        for part in ("backbone", "layers", "neck", "dimension", "pooling", "head_conv"):
            theirs, ours = getattr(earlier.architecture, part), getattr(architecture, part)
            if theirs != ours and not (part in ("neck", "dimension") and whitened):
                raise UserError(
                    f"pretrain_model {earlier.path} has {part} {theirs!r}, this phase {ours!r}"
                )
        # Of a run of images with texts, the image tower.
        state = without_prefix(plain_state(earlier), "backbone.visual.")
        embedder.load_state_dict(resized_state(state, embedder))
    return embedder, architecture


def _teacher(config: PhaseConfig, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """In evaluation mode, on the device: no part of the learner, it does not move with it."""
    if not config.distillation.run:
        return None
    return load_model(load_checkpoint(Path(config.distillation.run)), device)
