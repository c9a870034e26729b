"""Which classes, and how many images of each, several large data sets train on together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError

if TYPE_CHECKING:
    from visual_search.data.datasets import LabelledImages


def choose_classes(
    images: LabelledImages,
    more_than: Sequence[int],
    at_most: Sequence[int],
    max_classes: int,
    seed: int,
) -> LabelledImages:
    """A smaller training set, as the universal-embedding recipes draw it.

    Args:
        images: of one or several sources, from :func:`visual_search.data.datasets.combined`.
        more_than: of each source, the number of images that a class needs more than.
        at_most: of each source, images of a class, drawn at random; 0 is all.
        max_classes: of all sources together, drawn at random, all alike; 0 is all.
        seed: of the draws.

    Returns:
        The images that stay, in their order; their classes and sources are numbered anew, in their
        order. The same list where nothing was asked for.

    Raises:
        UserError: when a source has no class with enough images.
    """
    if not any((*more_than, *at_most, max_classes)):
        return images
    # Not at the top: it brings torch, which the tools for tables can do without.
    from visual_search.data.datasets import PathList

    assert images.sources is not None
    sources = images.sources
    sizes = images.counts(images.classes)
    # Classes without an image are of no source; they go.
    source_of_class = np.full(images.classes, -1)
    source_of_class[images.labels] = sources
    enough = (source_of_class >= 0) & (sizes > np.asarray(more_than)[source_of_class])
    for source in range(len(more_than)):
        of_source = source_of_class == source
        if not enough[of_source].any():
            first = images.paths[int(np.flatnonzero(sources == source)[0])]
            raise UserError(
                f"no class of the data set of {first} has more than {more_than[source]} images "
                f"(more_than); its largest has {sizes[of_source].max()}"
            )
    kept = drawn_classes(enough, max_classes, seed)
    limits = np.asarray(at_most)[sources]
    places = places_within(images.labels, seed)
    rows = np.flatnonzero(kept[images.labels] & ((limits == 0) | (places < limits)))
    # Of a small source the draw may leave nothing.
    left, renumbered = np.unique(sources[rows], return_inverse=True)
    return replace(
        images,
        paths=PathList(images.paths[row] for row in rows.tolist()),
        labels=(np.cumsum(kept) - 1)[images.labels[rows]],
        boxes=None if images.boxes is None else images.boxes[rows],
        class_names=tuple(images.class_names[label] for label in np.flatnonzero(kept)),
        sources=renumbered,
        source_weights=tuple(images.source_weights[source] for source in left),
    )


def drawn_classes(kept: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Of the classes that are True, `most` at most, drawn at random, `(classes,)`, bool.

    Args:
        kept: `(classes,)`, bool.
        most: 0 keeps all.
        seed: of the draw. With one seed, a smaller draw is a part of any larger one.
    """
    chosen = np.flatnonzero(kept)
    if not most or len(chosen) <= most:
        return kept
    drawn = np.zeros_like(kept)
    drawn[np.random.default_rng(seed).permutation(chosen)[:most]] = True
    return drawn


def places_within(groups: np.ndarray, seed: int) -> np.ndarray:
    """The place of each element in its shuffled group, `(n,)`, int64, 0..size of the group - 1.

    Args:
        groups: `(n,)`, integers from 0 on.
        seed: of the shuffling.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    places = pd.Series(groups[order], order)
    return places.groupby(places).cumcount().sort_index().to_numpy()
