"""Batches of images with queries: who meets whom, in one process and in several."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visual_search.common.errors import UserError
from visual_search.text.batches import build_pair_batches, fill_batches
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
    for batch in alone:
        assert len(set(GROUPS[batch].tolist())) == len(batch)


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


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_only_rearranged_and_meet_only_where_they_must(
    groups: list[int], batch: int, seed: int
) -> None:
    rows = np.random.default_rng(seed).permutation(len(groups))
    found = fill_batches(rows, np.array(groups), batch)
    assert sorted(found.tolist()) == list(range(len(groups)))
    batches = [
        Counter(groups[row] for row in found[start : start + batch])
        for start in range(0, len(found), batch)
    ]
    limits = {group: -(-count // len(batches)) for group, count in Counter(groups).items()}
    # A group stands too often only where no other batch could take a row and give one for it.
    for here in batches:
        for group in (group for group, count in here.items() if count > limits[group]):
            for other in batches:
                givable = [g for g in other if here[g] < limits[g]]
                assert other is here or other[group] >= limits[group] or not givable


def test_the_order_changes_only_for_groups_that_meet() -> None:
    rows = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(fill_batches(rows, np.arange(50), 8), rows)
    # A group of more rows than batches is spread over them.
    groups = np.array([0] * 50 + list(range(1, 51)))
    rows = np.random.default_rng(2).permutation(100)
    found = groups[fill_batches(rows, groups, 10)].reshape(10, 10)
    assert (found == 0).sum(axis=1).tolist() == [5] * 10


def test_begun_batches_are_filled_up() -> None:
    starts = [np.array([0, 1]), np.array([2])]
    found = fill_batches(np.array([3, 4, 5, 6]), np.array([0, 1, 2, 0, 3, 2, 4]), 3, starts)
    batches = [found[:3].tolist(), found[3:6].tolist(), found[6:].tolist()]
    assert batches[0] == [0, 1, 4]  # 3 is of the group of 0
    assert batches[1] == [2, 3, 6]  # 3 has waited; 5 is of the group of 2
    assert batches[2] == [5]


def test_settings_that_cannot_be_are_said() -> None:
    with pytest.raises(UserError, match=r"cluster_texts\.py assign"):
        build_pair_batches(settings("hard-negatives", 8), None, GROUPS)
    with pytest.raises(UserError, match=r"lower dataset\.batch_size"):
        build_pair_batches(settings("shuffle", 500), None, GROUPS)
