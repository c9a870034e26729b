import shutil
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands import refused
from visual_search.common.dataset_config import SamplerConfig
from visual_search.common.errors import UserError
from visual_search.data.datasets import LabelledImages, TrainingImages
from visual_search.data.samplers import (
    Order,
    TrainingBatches,
    class_groups,
    image_loader,
    order_of,
    shuffled,
)

SHUFFLE, PAIRS = SamplerConfig(), SamplerConfig("m-per-class")


def build_batches(
    sampler: SamplerConfig, images: LabelledImages, batch: int, seed: int = 0, **ours: int
) -> TrainingBatches:
    return TrainingBatches(order_of(sampler, images, batch), batch, seed, **ours)


def photos(
    sizes: list[int], sources: list[int] | None = None, weights: tuple[float, ...] = (1.0,)
) -> LabelledImages:
    """Class c has `sizes[c]` photos and belongs to source `sources[c]`; photos are mixed up."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(9).permutation(labels)
    of_photo = None if sources is None else np.asarray(sources)[labels]
    paths = [Path(f"{i}.jpg") for i in range(len(labels))]
    names = tuple(map(str, range(len(sizes))))
    return LabelledImages(paths, labels, None, names, of_photo, weights)


@st.composite
def collections(draw: st.DrawFn) -> LabelledImages:
    sizes = draw(st.lists(st.integers(1, 7), min_size=2, max_size=12))
    sources = draw(st.lists(st.integers(0, 1), min_size=len(sizes), max_size=len(sizes)))
    # Either source needs a class.
    sources[:2] = [0, 1]
    return photos(sizes, sources, (1.0, draw(st.sampled_from([0.5, 1.0, 1.7, 2.0]))))


@settings(max_examples=30, deadline=None)
@given(
    images=collections(),
    kind=st.sampled_from([SHUFFLE, PAIRS]),
    world_size=st.integers(1, 4),
    groups=st.integers(1, 3),
    start=st.integers(0, 5),
)
def test_processes_together_see_what_one_sees_and_go_on_anywhere(
    images: LabelledImages, kind: SamplerConfig, world_size: int, groups: int, start: int
) -> None:
    batch, seed, epoch = 2 * groups, start, 3
    try:
        one = build_batches(kind, images, batch * world_size, seed)
    except UserError:
        words = r"lower dataset\.batch_size|gives an epoch no image"
        refused(words, build_batches, kind, images, batch, seed, world_size=world_size)
        return
    ranks = range(world_size)
    many = [
        build_batches(kind, images, batch, seed, rank=rank, world_size=world_size) for rank in ranks
    ]
    undisturbed = []
    for batches in (one, *many):
        batches.set_epoch(epoch)
        undisturbed.append(list(batches))
        assert len(undisturbed[-1]) == len(batches) == len(one)
        batches.set_epoch(epoch, start)
        assert list(batches) == undisturbed[-1][start:]
    alone, *parts = undisturbed
    together = [[index for rows in row for index in rows] for row in zip(*parts, strict=True)]
    assert together == alone
    flat = [index for rows in together for index in rows]
    assert len(set(flat)) == len(flat)  # a photo that comes again has another index


def test_epochs_and_seeds_differ() -> None:
    images = photos([5] * 8)
    for kind in (SHUFFLE, PAIRS):
        seen = []
        for seed, epoch in ((1, 1), (1, 2), (2, 1)):
            batches = build_batches(kind, images, 4, seed)
            batches.set_epoch(epoch)
            seen.append(str(list(batches)))
        assert len(set(seen)) == 3


def drawn(order: Order, seed: int = 0, batch: int = 8) -> list[int]:
    rows = order.draw(np.random.default_rng(seed), batch).tolist()
    assert len(rows) == order.length
    return rows


def test_shuffling_shows_each_photo_as_often_as_its_source_weighs() -> None:
    assert sorted(drawn(shuffled(photos([3, 4, 5])))) == list(range(12))
    images = photos([3, 4, 5, 9], [0, 1, 2, 2], (1.0, 2.0, 0.5))
    sources = np.array([0, 1, 2, 2])[images.labels]
    halves = []
    for seed in range(20):
        times = Counter(drawn(shuffled(images), seed))
        assert all(times[i] == 1 for i in np.flatnonzero(sources == 0).tolist())
        assert all(times[i] == 2 for i in np.flatnonzero(sources == 1).tolist())
        half = [i for i in np.flatnonzero(sources == 2).tolist() if times[i]]
        assert len(half) == 7
        assert all(times[i] == 1 for i in half)
        halves.append(tuple(half))
    assert len(set(halves)) > 10
    assert {i for half in halves for i in half} == set(np.flatnonzero(sources == 2))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=10),
    per_class=st.integers(1, 4),
    groups=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_groups_of_a_class(sizes: list[int], per_class: int, groups: int, seed: int) -> None:
    images = photos(sizes)
    rows = drawn(class_groups(images, per_class), seed, groups * per_class)
    assert abs(len(rows) - len(images)) < max(per_class, len(images) + 1)
    pairs = [rows[i : i + per_class] for i in range(0, len(rows), per_class)]
    order = []
    shown: dict[int, Counter[int]] = defaultdict(Counter)
    for group in pairs:
        classes = {int(images.labels[i]) for i in group}
        assert len(classes) == 1
        order.append(classes.pop())
        of_class = np.flatnonzero(images.labels == order[-1])
        assert len(set(group)) == min(per_class, len(of_class))
        for i in group:
            # No photo comes again before all of its class have been there.
            assert shown[order[-1]][i] == min(shown[order[-1]][int(j)] for j in of_class)
            shown[order[-1]][i] += 1
    # Classes take turns, and differ within a batch where there are enough.
    times = Counter(order)
    assert max(times[c] for c in range(len(sizes))) - min(times[c] for c in range(len(sizes))) <= 1
    if len(sizes) >= groups:
        for i in range(0, len(order), groups):
            assert len(set(order[i : i + groups])) == len(order[i : i + groups])


def test_groups_in_proportion_to_the_sizes_of_the_classes() -> None:
    """A class of n photos of N has n / N of the pairs, and its photos take turns."""
    by_size = SamplerConfig("m-per-class", by_size=True)
    sizes = [40, 20, 10, 6, 4, 200]
    images = photos(sizes, [0, 0, 0, 0, 0, 1])
    for seed in range(4):
        rows = drawn(order_of(by_size, images, 4), seed, batch=4)
        pairs = images.labels[rows].reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all()
        found = np.bincount(pairs[:, 0], minlength=6)
        assert abs(found - np.array(sizes) / 2).max() <= 1
        times = Counter(rows)
        assert all(times[row] <= 2 for row in range(len(images)))
    # In a source of its own, no class is there twice in a batch while another one is left.
    images = photos([12, 12, 12, 12])
    batches = images.labels[drawn(order_of(by_size, images, 4), 0, 4)].reshape(-1, 2, 2)
    same = (batches[:, 0, 0] == batches[:, 1, 0]).mean()
    assert same <= 0.1


def test_what_cannot_be_batched_is_said() -> None:
    images = photos([3, 3])
    refused(r"batch_size = 4 on 2 process", build_batches, SHUFFLE, images, 4, world_size=2)
    words = r"batch_size = 6 .*images_per_class = 4"
    refused(words, order_of, SamplerConfig("m-per-class", images_per_class=4), images, 6)


def test_batches_that_do_not_fit_into_shared_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = TrainingImages(photos([4, 4, 4]), lambda image: torch.zeros(0), 224, 0)
    batches = build_batches(SHUFFLE, images.images, 4)
    # 8 workers x 2 batches x 4 images x 3 x 224 x 224 bytes.
    usage = SimpleNamespace(total=64 << 20, used=0, free=9_633_791)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    words = r"10 MB of shared memory.*--shm-size.*num_workers to 0"
    refused(words, image_loader, images, batches, 0, 8)
    assert image_loader(images, batches, 0, 0).num_workers == 0
    usage.free += 1
    assert image_loader(images, batches, 0, 8).num_workers == 8
