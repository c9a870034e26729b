"""Which images meet in a batch, for losses whose negatives are the rest of the batch.

Two images of one group (the same product, the same content) are relevant to each other's queries:
in one batch each would count as a wrong answer for the other. So they do not meet while there is
anything else to put there. Cut and repeated as in :mod:`visual_search.data.samplers`.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from visual_search.common.errors import UserError
from visual_search.data.samplers import Order, TrainingBatches
from visual_search.text.config import PairDataConfig


class ShuffledPairs(Order):
    """Every image once, in random order."""

    def __init__(self, groups: np.ndarray) -> None:
        self.groups, self.size = groups, len(groups)

    def __len__(self) -> int:
        return self.size

    def draw(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """An epoch's images; no group twice in a batch where that can be had."""
        return fill_batches(rng.permutation(self.size), self.groups, batch)


class HardNegatives(ShuffledPairs):
    """A share of each batch is of one cluster: images whose queries are alike and yet differ.

    Every image comes once an epoch. Whose turn it is to stand among its like changes with each
    epoch, in proportion to the sizes of the clusters.
    """

    def __init__(self, groups: np.ndarray, clusters: np.ndarray, hard_share: float = 0.5) -> None:
        super().__init__(groups)
        self.clusters, self.hard_share = clusters, hard_share

    def draw(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """An epoch's images: in each batch a run of one cluster, mixed among others."""
        run = max(1, round(self.hard_share * batch))
        mixed = rng.permutation(self.size)
        runs: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        by_cluster = mixed[np.argsort(self.clusters[mixed], kind="stable")]
        for rows in np.split(by_cluster, np.cumsum(np.bincount(self.clusters))[:-1]):
            spaced = fill_batches(rows, self.groups, run)
            whole = len(spaced) // run * run
            runs += list(spaced[:whole].reshape(-1, run))
            rest.append(spaced[whole:])
        order = rng.permutation(len(runs)).tolist()
        batches = self.size // batch
        starts = [runs[number] for number in order[:batches]]
        pool = np.concatenate([*rest, *(runs[number] for number in order[batches:])])
        drawn = fill_batches(rng.permutation(pool), self.groups, batch, starts)
        # Which process gets the run and which the others is chance, too.
        whole = batches * batch
        drawn[:whole] = rng.permuted(drawn[:whole].reshape(batches, batch), axis=1).reshape(-1)
        return drawn


def fill_batches(
    rows: np.ndarray, groups: np.ndarray, batch: int, starts: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Rearrange rows so that no batch has two of a group, as far as there are others.

    A row that meets its group waits for the next batch; what is left at the end changes places
    with rows of earlier batches. So the order changes little. A group of more rows than there are
    batches is spread over all of them.

    Args:
        rows: in the order in which they are wanted, int64.
        groups: of every row that there is, `(n,)`.
        batch: rows of a batch.
        starts: what the first, second, … batch begins with, of at most `batch` rows each.

    Returns:
        All rows of `starts` and `rows`.
    """
    everything = np.concatenate([rows, *starts]).astype(np.int64)
    count = -(-len(everything) // batch)
    limits = np.maximum(-(-np.bincount(groups[everything]) // max(count, 1)), 1)
    filled: list[list[int]] = [start.tolist() for start in starts]
    filled += [[] for _ in range(count - len(starts))]
    places = _Places(groups.tolist(), limits.tolist(), filled)
    waiting: dict[int, deque[int]] = {}
    coming = iter(rows.tolist())

    def take(group: int, number: int) -> None:
        """Put the row of `group` that has waited longest; the group goes to the end."""
        others = waiting.pop(group)
        places.put(others.popleft(), number)
        if others:
            waiting[group] = others

    for number, here in enumerate(places.batches):
        # Twice as many as there is room for: some may be there already.
        for group in list(itertools.islice(waiting, 2 * batch)):
            while len(here) < batch and group in waiting and places.has_room(group, number):
                take(group, number)
        while len(here) < batch and (row := next(coming, None)) is not None:
            group = places.group_of[row]
            if places.has_room(group, number):
                places.put(row, number)
            else:
                waiting.setdefault(group, deque()).append(row)
        # Nothing else is left: they have to meet.
        while len(here) < batch and waiting:
            take(next(iter(waiting)), number)
    places.part([len(start) for start in starts])
    return np.array(list(itertools.chain.from_iterable(places.batches)), dtype=np.int64)


class _Places:
    """Batches, and how often each group stands in them."""

    def __init__(self, group_of: list[int], limits: list[int], batches: list[list[int]]) -> None:
        """`group_of` every row, how often each group may stand in a batch, and what is there."""
        self.group_of, self.limits, self.batches = group_of, limits, batches
        self.counts = [Counter(group_of[row] for row in rows) for rows in batches]

    def put(self, row: int, number: int) -> None:
        """Put a row into a batch."""
        self.batches[number].append(row)
        self.counts[number][self.group_of[row]] += 1

    def has_room(self, group: int, number: int) -> bool:
        """Whether a batch may have one more of `group`."""
        return self.counts[number][group] < self.limits[group]

    def part(self, fixed: list[int]) -> None:
        """Let rows of groups that stand too often in a batch change places with other rows.

        `fixed` rows at the beginning of the first, second, … batch stay where they are.
        """
        hopeless: set[int] = set()
        for number, here in reversed(list(enumerate(self.batches))):
            for place in reversed(range(len(here))):
                group = self.group_of[here[place]]
                if group in hopeless or self.counts[number][group] <= self.limits[group]:
                    continue
                if not self._exchange(number, place, fixed):
                    hopeless.add(group)

    def _exchange(self, number: int, place: int, fixed: list[int]) -> bool:
        """Change places with a row of a batch that has room for the group, if there is one."""
        here = self.batches[number]
        group = self.group_of[here[place]]
        for other, there in reversed(list(enumerate(self.batches))):
            if other == number or not self.has_room(group, other):
                continue
            for row in range(fixed[other] if other < len(fixed) else 0, len(there)):
                theirs = self.group_of[there[row]]
                if self.has_room(theirs, number):
                    here[place], there[row] = there[row], here[place]
                    self.counts[number].update({theirs: 1, group: -1})
                    self.counts[other].update({theirs: -1, group: 1})
                    return True
        return False


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
        order = ShuffledPairs(groups)
    elif clusters is None:
        raise UserError(
            f"dataset.sampler.kind {sampler.kind} needs clusters, and the table of pairs has none: "
            "run `python dataset/image_text/cluster_texts.py assign`"
        )
    else:
        order = HardNegatives(groups, clusters, sampler.hard_share)
    return TrainingBatches(
        order, dataset.batch_size, dataset.seed, rank=rank, world_size=world_size
    )
