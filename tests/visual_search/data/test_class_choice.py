from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands import refused
from visual_search.data.class_choice import choose_classes, places_within
from visual_search.data.datasets import LabelledImages, combined

SEEDS = st.integers(0, 2**32 - 1)


def images(labels: list[int], prefix: str = "a") -> LabelledImages:
    classes = max(labels) + 1
    return LabelledImages(
        [Path(f"{prefix}{row}.jpg") for row in range(len(labels))],
        np.array(labels, dtype=np.int64),
        class_names=tuple(f"{prefix}{label}" for label in range(classes)),
    )


@settings(max_examples=80, deadline=None)
@given(
    first=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    second=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    limits=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    most=st.integers(0, 6),
    seed=SEEDS,
)
def test_what_stays_obeys_every_limit(
    first: list[int], second: list[int], limits: list[int], most: int, seed: int
) -> None:
    both = combined([images(first, "a"), images(second, "b")], [1.0, 0.5])
    more_than, at_most = limits[:2], limits[2:]
    sizes = Counter(both.class_names[label] for label in both.labels.tolist())
    of_source = {name: "ab".index(name[0]) for name in sizes}
    eligible = {name for name, n in sizes.items() if n > more_than[of_source[name]]}
    if any(not any(of_source[name] == s for name in eligible) for s in (0, 1)):
        refused("more_than", choose_classes, both, more_than, at_most, most, seed)
        return
    chosen = choose_classes(both, more_than, at_most, most, seed)
    kept = [chosen.class_names[label] for label in chosen.labels.tolist()]
    counts = Counter(kept)
    if not any([*limits, most]):
        assert chosen is both
        return
    assert len(counts) == min(most or len(eligible), len(eligible)) == chosen.classes
    assert set(counts) <= eligible
    for name, count in counts.items():
        limit = at_most[of_source[name]]
        assert count == min(limit or sizes[name], sizes[name])
    # Photos keep their names, order and source; of each source there are some.
    was = dict(zip(map(str, both.paths), both.labels.tolist(), strict=True))
    paths = [str(path) for path in chosen.paths]
    assert [both.class_names[was[path]] for path in paths] == kept
    assert paths == [path for path in map(str, both.paths) if path in set(paths)]
    assert chosen.sources is not None
    weights = [chosen.source_weights[source] for source in chosen.sources]
    assert weights == [{"a": 1.0, "b": 0.5}[path[0]] for path in paths]
    assert np.bincount(chosen.sources, minlength=len(chosen.source_weights)).all()


def test_a_smaller_draw_is_a_part_of_a_larger() -> None:
    every = combined([images(list(range(50)))], [1.0])
    small, large = (
        set(choose_classes(every, [0], [0], number, 7).class_names) for number in (10, 30)
    )
    assert (len(small), len(large)) == (10, 30)
    assert small < large


@settings(max_examples=100, deadline=None)
@given(classes=st.lists(st.integers(0, 9), min_size=8, max_size=120).map(np.array), seed=SEEDS)
def test_places_within_a_group_are_a_shuffle_of_it(classes: np.ndarray, seed: int) -> None:
    found = defaultdict(list)
    for group, place in zip(classes.tolist(), places_within(classes, seed).tolist(), strict=True):
        found[group].append(place)
    assert all(sorted(places) == list(range(len(places))) for places in found.values())
