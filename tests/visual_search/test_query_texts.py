"""Which texts a batch is shown with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.visual_search.drawn_pairs import write_drawn_pairs
from visual_search.pair_table import PairTable, read_pairs
from visual_search.query_texts import QueryTexts


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    return read_pairs(write_drawn_pairs(tmp_path / "data", photos=2), "train")


def test_a_draw_depends_on_seed_epoch_and_photo_alone(table: PairTable) -> None:
    texts, again = QueryTexts(table, seed=1), QueryTexts(table, seed=1)
    photos = torch.arange(len(table))
    labels = torch.from_numpy(texts.groups)
    seen: list[set[str]] = [set() for _ in range(len(table))]
    for epoch in range(12):
        chosen = texts.chosen(photos, labels, epoch)
        assert chosen.owners is None
        flipped = again.chosen(photos.flip(0), labels.flip(0), epoch)
        assert flipped.texts[::-1] == chosen.texts
        for photo, text in enumerate(chosen.texts):
            assert text in table.queries[photo]
            seen[photo].add(text)
    assert all(len(texts) == 2 for texts in seen)


def test_equal_texts_have_equal_numbers(table: PairTable) -> None:
    texts = QueryTexts(table, how="mean")
    chosen = texts.chosen(torch.tensor([0, 1, 2]), torch.from_numpy(texts.groups[:3]), 0)
    # Photos 0 and 1 are of one product, photo 2 of another.
    assert chosen.ids[0] == chosen.ids[1] != chosen.ids[2]
    assert chosen.owners is not None
    assert chosen.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert chosen.texts == [*table.queries[0], *table.queries[1], *table.queries[2]]
    most = QueryTexts(table, how="mean", most=1)
    assert most.chosen(torch.tensor([0]), torch.tensor([0]), 0).texts == table.queries[0][:1]


def test_a_stand_in_of_another_product_has_its_own_texts(table: PairTable) -> None:
    texts = QueryTexts(table)
    other = int(texts.groups.max())
    chosen = texts.chosen(torch.tensor([0]), torch.tensor([other]), 0)
    assert chosen.texts[0] in table.queries[int(texts.first[other])]


def test_shuffled_products_swap_their_texts(table: PairTable) -> None:
    texts = QueryTexts(table, shuffled=True, seed=3)
    given = [texts.of(photo) for photo in range(len(table))]
    assert sorted(map(tuple, given)) == sorted(map(tuple, table.queries))
    moved = sum(a != b for a, b in zip(given, table.queries, strict=True))
    assert moved > len(table) / 2
    for photo in range(0, len(table), 2):
        assert given[photo] == given[photo + 1]
