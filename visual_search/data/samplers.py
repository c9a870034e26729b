"""Which images meet in a batch: batch samplers that any number of processes cut alike.

An epoch is one flat sequence of images, drawn from (seed, epoch) alone. With W processes and
batches of B, process r takes the rows from k·W·B + r·B on: together they see what one process
sees with batches of W·B, and a run goes on at any batch without replaying those before it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Sampler

from visual_search.common.dataset_config import SamplerConfig
from visual_search.common.errors import UserError
from visual_search.data.datasets import LabelledImages, TrainingImages

SHARED_MEMORY = Path("/dev/shm")
"""Where worker processes leave their batches, on Linux."""
PREFETCHED = 2
"""Batches that each worker may have ready."""
LOOK_AHEAD = 1000
"""Members that are looked through for one that is not in the batch yet."""


class Order(NamedTuple):
    """How the images of an epoch are drawn."""

    size: int
    """How many there are; an epoch may show one several times, or not at all."""
    length: int
    """Images in an epoch."""
    draw: Callable[[np.random.Generator, int], np.ndarray]
    """An epoch's images, `(length,)`, int64, 0..size-1, for batches of so many images."""


def _sources(images: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
    """The source of each image, and how many are drawn from each source in an epoch.

    That is its weight times its size.
    """
    sources = np.zeros(len(images), np.int64) if images.sources is None else images.sources
    sizes = np.bincount(sources, minlength=len(images.source_weights))
    draws = np.rint(sizes * np.asarray(images.source_weights)).astype(np.int64)
    if (draws == 0).any():
        least = int(draws.argmin())
        raise UserError(
            f"a data set of {sizes[least]} images with the weight "
            f"{images.source_weights[least]:g} gives an epoch no image; write a larger "
            "weight, or leave the data set out"
        )
    return sources, draws


def shuffled(images: LabelledImages) -> Order:
    """Every image of a source as often as the others, in random order.

    A weight of 2 shows each twice, 0.5 another random half in each epoch.
    """
    sources, draws = _sources(images)

    def draw(rng: np.random.Generator, batch: int) -> np.ndarray:
        return rng.permutation(spread(sources, draws, rng))

    return Order(len(images), int(draws.sum()), draw)


def class_groups(images: LabelledImages, per_class: int = 2, by_size: bool = False) -> Order:
    """Groups of `per_class` images of one class, as pair losses need them.

    The classes of a source take turns in random order, whatever their sizes, or (`by_size`) come
    in proportion to their sizes, and do not meet twice in a batch while there are others. The
    images of a class take turns too: an image comes again only when all of its class have been
    there, in a group and over the epoch.
    """
    labels, (sources, draws) = images.labels, _sources(images)
    n_groups = np.maximum(draws // per_class, 1)

    def draw(rng: np.random.Generator, batch: int) -> np.ndarray:
        by_class = np.argsort(labels, kind="stable")
        counts = images.counts(images.classes)
        ends = np.cumsum(counts).tolist()
        of_source = [np.unique(labels[sources == s]) for s in range(len(n_groups))]
        if by_size:
            of_source = [
                np.repeat(classes, systematic_draws(counts[classes], total, rng))
                for classes, total in zip(of_source, n_groups.tolist(), strict=True)
            ]
        rows_of = _Turns(lambda label: by_class[ends[label - 1] if label else 0 : ends[label]], rng)
        classes = _Turns(lambda source: of_source[source], rng)
        groups = np.repeat(np.arange(len(n_groups)), n_groups)
        groups_of_batch = max(batch // per_class, 1)
        rows: list[int] = []
        for number, source in enumerate(rng.permutation(groups).tolist()):
            if number % groups_of_batch == 0:
                in_batch: set[int] = set()
            label = classes.take(source, in_batch)
            in_batch.add(label)
            group: list[int] = []
            for _ in range(per_class):
                group.append(rows_of.take(label, group))
            rows += group
        return np.array(rows, dtype=np.int64)

    return Order(len(images), int(n_groups.sum()) * per_class, draw)


class _Turns:
    """Members of groups, one after the other: again only after all of the group, and reshuffled."""

    def __init__(self, members: Callable[[int], np.ndarray], rng: np.random.Generator) -> None:
        self.members = members
        # For lists of a few, Python's own is several times faster than NumPy's.
        self.random = random.Random(int(rng.integers(2**63)))
        self.waiting: dict[int, list[int]] = {}

    def take(self, group: int, avoid: Collection[int]) -> int:
        """The next of `group`; one of `avoid` only when no other is left, or far ahead."""
        waiting = self.waiting.get(group)
        if not waiting:
            waiting = self.waiting[group] = self.members(group).tolist()
            self.random.shuffle(waiting)
            if avoid:
                # The last of the list comes first.
                waiting.sort(key=lambda member: member not in avoid)
        if waiting[-1] in avoid:  # of members that come several times in a round
            for place in range(len(waiting) - 2, max(len(waiting) - LOOK_AHEAD, 0) - 1, -1):
                if waiting[place] not in avoid:
                    return waiting.pop(place)
        return waiting.pop()


def systematic_draws(shares: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """How often each class is drawn, int64: `total` times its share in all, give or take 1.

    Systematic sampling: one random offset, then every whole number falls into a class.
    """
    ends = np.cumsum(shares / shares.sum()) * total
    ends[-1] = total  # whatever the rounding of the sum
    return np.diff(np.floor(ends + rng.random()).astype(np.int64), prepend=0)


def spread(groups: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indexes of `groups`, so that group g comes `draws[g]` times in all.

    Its members come equally often, give or take one: which ones more often is drawn at random.
    """
    sizes = np.bincount(groups, minlength=len(draws))
    mixed = rng.permutation(len(groups))
    members = mixed[np.argsort(groups[mixed], kind="stable")]
    place = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rounds, rest = np.divmod(draws, np.maximum(sizes, 1))
    group = groups[members]
    return np.repeat(members, rounds[group] + (place < rest[group]))


class TrainingBatches(Sampler[list[int]]):
    """Batches of indexes for one process, for the `batch_sampler` of a DataLoader.

    An index is an image, `index % n`; an image that comes for the k-th time in an epoch is
    `image + (k - 1) * n`, so that its augmentation is drawn anew.
    """

    def __init__(
        self, order: Order, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """Cut an epoch into batches.

        Args:
            order: how the images of an epoch are drawn.
            batch_size: images of a batch of this process.
            seed: of all epochs.
            rank: number of this process, 0..world_size-1.
            world_size: processes that train together.

        Raises:
            UserError: when an epoch has fewer images than the batches of all processes.
        """
        self.order, self.batch_size, self.seed = order, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start_batch = 0
        if len(self) == 0:
            raise UserError(
                f"an epoch has {order.length} training images, fewer than dataset.batch_size = "
                f"{batch_size} on {world_size} process(es) needs; lower dataset.batch_size"
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and the batch that the next pass over it begins with."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the pass begins; images that fill none are left."""
        return self.order.length // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        together = self.batch_size * self.world_size
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = self.order.draw(rng, together)[: len(self) * together]
        times = pd.Series(drawn).groupby(drawn).cumcount().to_numpy()
        indexes = drawn + self.order.size * times
        mine = indexes.reshape(len(self), self.world_size, self.batch_size)[:, self.rank]
        for batch in mine[self.start_batch :]:
            yield batch.tolist()


def order_of(sampler: SamplerConfig, images: LabelledImages, batch_size: int) -> Order:
    """How the images of an epoch are drawn, for batches of `batch_size` images of a process.

    Raises:
        UserError: for a batch that m-per-class cannot fill with whole groups.
    """
    if sampler.kind == "shuffle":
        return shuffled(images)
    if batch_size % sampler.images_per_class:
        raise UserError(
            f"dataset.batch_size = {batch_size} is no multiple of "
            f"dataset.sampler.images_per_class = {sampler.images_per_class}; make it one"
        )
    return class_groups(images, sampler.images_per_class, sampler.by_size)


def image_loader(
    images: TrainingImages, batches: TrainingBatches, seed: int, workers: int
) -> DataLoader:
    """A loader of the batches that `batches` chooses.

    Args:
        images: by number.
        batches: the numbers of each batch.
        seed: of the draws that seed the workers.
        workers: processes that read; 0 reads in this one.

    Raises:
        UserError: when the workers' batches do not fit into the shared memory.
    """
    if workers:
        _check_shared_memory(workers * PREFETCHED * batches.batch_size * 3 * images.size**2)
    return DataLoader(
        images,
        batch_sampler=batches,
        # What reads a whole batch at once has put it together.
        collate_fn=_as_it_is if hasattr(images, "__getitems__") else None,
        # Its own: else the draws of dropout would depend on how many workers there are.
        generator=torch.Generator().manual_seed(seed),
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _check_shared_memory(needed: int) -> None:
    """Refuse what would hang: a worker that finds no room for its batch waits for ever.

    A container has 64 MB unless it is started with more.
    """
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise UserError(
            f"the batches of the worker processes take {needed / 1e6:.0f} MB of shared memory, and "
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB left: start the container with more (docker "
            "run --shm-size 1g …), or set dataset.num_workers to 0 or lower dataset.batch_size"
        )
