"""Batches of images with queries: who meets whom, in one process and in several."""

from typing import Any

import numpy as np
import pytest

from visual_search.common.errors import UserError
from visual_search.text.batches import build_pair_batches
from visual_search.text.config import PairDataConfig, PairSamplerConfig

KINDS = ("shuffle", "hard-negatives")
IMAGES = 240
RNG = np.random.default_rng(0)
GROUPS = RNG.integers(0, 90, IMAGES)
# Sizes of about 1 : 2 : 4 : 8.
CLUSTERS = RNG.choice(4, IMAGES, p=[1 / 15, 2 / 15, 4 / 15, 8 / 15])


def settings(kind: Any, batch: int, **more: Any) -> PairDataConfig:
    return PairDataConfig(batch_size=batch, seed=7, sampler=PairSamplerConfig(kind, **more))


def epoch(kind: str, batch: int = 24, number: int = 0, **more: Any) -> np.ndarray:
    sampler = build_pair_batches(settings(kind, batch, **more), CLUSTERS, GROUPS)
    sampler.set_epoch(number)
    return np.array(list(sampler))


@pytest.mark.parametrize("kind", KINDS)
def test_processes_together_see_an_epoch_of_all_images(kind: str) -> None:
    alone, parts = epoch(kind, 24), list[np.ndarray]()
    for rank in range(2):
        sampler = build_pair_batches(settings(kind, 12), CLUSTERS, GROUPS, rank, 2)
        parts.append(np.array(list(sampler)))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), alone)
    assert (alone != epoch(kind, number=1)).any()
    assert sorted(alone.ravel().tolist()) == list(range(IMAGES))


def test_of_hard_negatives_a_share_is_of_one_cluster() -> None:
    for share, least in ((0.5, 12), (0.25, 6), (0.0, 1)):
        batches = epoch("hard-negatives", hard_share=share)
        most = [np.bincount(CLUSTERS[batch]).max() for batch in batches]
        assert min(most) >= least
    # All of a batch, where a cluster is large enough for whole batches.
    pure = epoch("hard-negatives", hard_share=1.0)
    whole = sum(len(np.unique(CLUSTERS[batch])) == 1 for batch in pure)
    assert whole >= sum(count // 24 for count in np.bincount(CLUSTERS).tolist()) - 1
    # And the cluster is another one from batch to batch.
    first = [np.bincount(CLUSTERS[batch], minlength=4).argmax() for batch in pure]
    assert len(set(first)) >= 3


def test_hard_images_are_drawn_by_chance_and_not_by_place() -> None:
    """Over many epochs each process gets as many of the cluster's images as the others."""
    halves = np.zeros(2)
    for number in range(20):
        for batch in epoch("hard-negatives", number=number):
            inside = CLUSTERS[batch] == np.bincount(CLUSTERS[batch]).argmax()
            halves += inside.reshape(2, 12).sum(axis=1)
    assert 0.45 < halves[0] / halves.sum() < 0.55


def test_images_of_a_group_are_spread_over_the_epoch() -> None:
    groups = np.repeat(np.arange(50), 4)
    for batch in build_pair_batches(settings("shuffle", 20), None, groups):
        assert len(set(groups[batch].tolist())) == 20
    # A group of more rows than batches is in all of them alike.
    groups = np.array([0] * 50 + list(range(1, 51)))
    batches = np.array(list(build_pair_batches(settings("shuffle", 10), None, groups)))
    assert np.ptp((groups[batches] == 0).sum(axis=1)) <= 4


def test_settings_that_cannot_be_are_said() -> None:
    with pytest.raises(UserError, match=r"cluster_texts\.py assign"):
        build_pair_batches(settings("hard-negatives", 8), None, GROUPS)
    with pytest.raises(UserError, match=r"lower dataset\.batch_size"):
        build_pair_batches(settings("shuffle", 500), None, GROUPS)
