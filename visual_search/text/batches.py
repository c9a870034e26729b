"""Which images meet in a batch, for losses whose negatives are the rest of the batch.

Two images of one group (the same product, the same content) are relevant to each other's queries,
and teach nothing against each other: those of a group are spread evenly over the epoch. Cut and
repeated as in :mod:`visual_search.data.samplers`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.data.samplers import Order, TrainingBatches
from visual_search.text.config import PairDataConfig


def shuffled_pairs(groups: np.ndarray) -> Order:
    """Every image once, in random order."""
    rows = np.arange(len(groups))
    return Order(len(groups), len(groups), lambda rng, batch: apart(rows, groups, rng))


def hard_negatives(groups: np.ndarray, clusters: np.ndarray, hard_share: float = 0.5) -> Order:
    """A share of each batch is of one cluster: images whose queries are alike and yet differ.

    Every image comes once an epoch. Whose turn it is to stand among its like changes with each
    epoch, in proportion to the sizes of the clusters.
    """

    def draw(rng: np.random.Generator, batch: int) -> np.ndarray:
        run = max(1, round(hard_share * batch))
        runs: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for cluster in np.unique(clusters):
            rows = apart(np.flatnonzero(clusters == cluster), groups, rng)
            whole = len(rows) // run * run
            runs += list(rows[:whole].reshape(-1, run))
            rest.append(rows[whole:])
        runs = [runs[number] for number in rng.permutation(len(runs))]
        batches = len(groups) // batch
        begun, rest = runs[:batches], rest + runs[batches:]
        others = apart(np.concatenate(rest), groups, rng)
        drawn = np.full((batches, batch), -1)
        drawn[: len(begun), :run] = np.reshape(begun, (-1, run))
        empty = drawn < 0
        drawn[empty] = others[: empty.sum()]
        # Which process gets the run and which the others is chance, too.
        drawn = rng.permuted(drawn, axis=1)
        return np.concatenate([drawn.ravel(), others[empty.sum() :]])

    return Order(len(groups), len(groups), draw)


def apart(rows: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows in random order, those of a group as far apart as they can be.

    Of m rows of a group, each stands an m-th of all rows behind the one before: in batches they
    meet where the group has about as many rows as there are batches.

    Args:
        rows: some of the n rows, int64.
        groups: of every row, `(n,)`, int64, 0..g-1.
        rng: of the order.
    """
    mixed = rng.permutation(rows)
    own = groups[mixed]
    members = pd.Series(own).groupby(own)
    first = rng.random(groups.max() + 1)[own]
    place = (members.cumcount() + first) / members.transform("size")
    return mixed[np.argsort(place.to_numpy(), kind="stable")]


def build_pair_batches(
    dataset: PairDataConfig,
    clusters: np.ndarray | None,
    groups: np.ndarray,
    rank: int = 0,
    world_size: int = 1,
) -> TrainingBatches:
    """The batches of process `rank` of `world_size`, which together see what one would alone.

    Args:
        dataset: which sampler, the size of this process's batches, the seed of all epochs.
        clusters: of each image, `(n,)`, int64, 0..c-1; None where there are none.
        groups: of each image, `(n,)`, int64: images of one group are no negatives of each other.

    Raises:
        UserError: for missing clusters, and when an epoch fills no batch.
    """
    sampler = dataset.sampler
    if sampler.kind == "shuffle":
        order = shuffled_pairs(groups)
    elif clusters is None:
        raise UserError(
            f"dataset.sampler.kind {sampler.kind} needs clusters, and the table of pairs has none: "
            "run `python dataset/image_text/cluster_texts.py assign`"
        )
    else:
        order = hard_negatives(groups, clusters, sampler.hard_share)
    return TrainingBatches(
        order, dataset.batch_size, dataset.seed, rank=rank, world_size=world_size
    )
