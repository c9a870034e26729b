"""Probabilities against drawn queries whose true probability is known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import refused
from visual_search.serve.calibration import Calibration, draw_reliability, fit

QUERIES = 2000


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, ...]:
    """Scores, right hits, products, absence, and the true probability of each first hit.

    The product is there in half of the queries; of those that count less the odds fall by three.
    """
    rng = np.random.default_rng(5)
    top = rng.uniform(0.2, 1, QUERIES)
    rest = np.sort(rng.uniform(0, 0.2, (QUERIES, 3)))[:, ::-1]
    absent = rng.random(QUERIES) < 0.5
    right = np.zeros((QUERIES, 4), bool)
    right[:, 0] = rng.random(QUERIES) < np.where(absent, 0, top**2)
    scores = np.column_stack([top, rest])
    return scores, right, rng.permutation(QUERIES), absent, 0.75 * top**2


def test_what_is_said_is_how_often_it_is_right(
    drawn: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    scores, *judged, expected = drawn
    made = fit(scores, *judged)
    stored = Calibration(**json.loads(json.dumps(asdict(made))))
    said = np.array([stored.probability(row) for row in scores.tolist()])
    assert np.abs(said - expected).mean() < 0.04
    assert made.error < 0.04
    assert sum(share for _, _, share in made.reliability) == pytest.approx(1)
    assert stored.probability([0.95]) == stored.probability([0.95, 0.95])
    assert stored.probability([0.95]) > stored.probability([0.3, 0.29])
    assert [stored.word(score) for score in (0.05, 0.85)] == ["perhaps", "likely"]
    draw_reliability(made, tmp_path / "diagram.png")
    assert Image.open(tmp_path / "diagram.png").size[0] > 400


def test_too_few_judgements_are_refused(drawn: tuple[np.ndarray, ...]) -> None:
    scores, right, products, absent, _ = drawn
    refused("too few", fit, scores[:20], right[:20], products[:20], absent[:20])
    refused("too few", fit, scores, np.zeros_like(right), products, absent)
    right = np.zeros_like(right)
    right[7, 0] = True  # in one fold alone: nothing is learnt without it
    refused("too few", fit, scores, right, products, absent)
