"""Hashed n-grams against a loop over the features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from visual_search.hashed_ngrams import HashedNgrams, features_of, hashed


def test_features_of_a_word() -> None:
    assert features_of("Ёж") == ["=еж", "<еж", "еж>", "<еж>"]
    assert features_of("140x200, стол!")[0] == "=140x200"
    assert features_of(" !? ") == []


def crc32(data: bytes) -> int:
    """Bit by bit, of the reflected polynomial 0xEDB88320 (ISO 3309)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_numbers_stay_what_they_are() -> None:
    """A model on disk counts on them."""
    assert hashed("еж", 1000) == tuple(1 + crc32(f.encode()) % 1000 for f in features_of("еж"))


def test_vectors_are_weighted_means() -> None:
    torch.manual_seed(0)
    towers = HashedNgrams(300, 7)
    towers.start_alone()
    training = ["стул", "стол", "красный стул"]
    towers.fit(training)
    texts = ["стул", "стол красный", "неведомое", ""]
    vectors = towers(towers.tokenize(texts))
    for text, vector in zip(texts, vectors, strict=True):
        total, squares = torch.zeros(7), 0.0
        for number in hashed(text, 300):
            count = sum(number in hashed(known, 300) for known in training)
            weight = math.log(4 / (1 + count)) + 1 if count else 0.0
            total += weight * towers.table.weight[number].detach()
            squares += weight**2
        expected = total / math.sqrt(squares) if squares else total
        torch.testing.assert_close(vector.detach(), expected, atol=1e-5, rtol=1e-4)


def test_bags_times_the_table_are_the_vectors() -> None:
    towers = HashedNgrams(5000, 6)
    towers.start_alone()
    texts = ["настольная лампа", "лампа", "стол"]
    towers.fit(texts)
    bags = towers.bags(texts)
    assert np.linalg.norm(bags, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    mapped = torch.from_numpy(bags) @ towers.table.weight
    directions = torch.nn.functional.normalize(mapped, dim=1)
    ours = torch.nn.functional.normalize(towers(towers.tokenize(texts)), dim=1)
    # A feature that a text has twice counts twice in both, and only the lengths differ.
    torch.testing.assert_close(ours, directions, atol=1e-3, rtol=1e-3)
