"""Recalls and mAP of both directions against loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.visual_search.drawn_pairs import write_drawn_pairs
from visual_search.evaluation.metrics import hits_among, per_query
from visual_search.text.pairs import read_pairs
from visual_search.text.retrieval import Relevance, evaluate_retrieval, relevance_of


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12))
def test_scores_are_those_of_a_loop(seed: int, queries: int, answers: int) -> None:
    """Inside training (`evaluate_retrieval`), and of tasks (`per_query`)."""
    rng = np.random.default_rng(seed)
    ranks = np.stack([rng.permutation(answers) for _ in range(queries)])
    right = [rng.permutation(answers)[: rng.integers(1, answers + 1)] for _ in range(queries)]
    of_tasks = per_query(hits_among(ranks, right))
    # Each query's products with the answers fall with their rank.
    products = torch.from_numpy(-np.argsort(ranks, axis=1)).float()
    relevance = Relevance([""] * queries, right, [np.arange(queries)] * answers)
    both = evaluate_retrieval(torch.eye(answers), products, relevance)
    assert (both.image_ranks == ranks).all()
    scores = both.scores["text_to_photo"]
    for query in range(queries):
        wanted = set(right[query].tolist())
        places = [place for place, row in enumerate(ranks[query].tolist(), 1) if row in wanted]
        precisions = [found / place for found, place in enumerate(places, 1)]
        assert scores["mAP"][query] == pytest.approx(sum(precisions) / len(wanted))
        for k in (1, 5, 10):
            assert scores[f"R@{k}"][query] == (places[0] <= k)
        among = wanted & set(ranks[query][: len(wanted)].tolist())
        assert of_tasks["R-precision"][query] == pytest.approx(len(among) / len(wanted))


def test_relevance_follows_names_and_products(tmp_path: Path) -> None:
    table = read_pairs(write_drawn_pairs(tmp_path / "data", photos=2), "test")
    relevance = relevance_of(table)
    assert sorted(relevance.texts) == sorted({q for qs in table.queries for q in qs})
    for text, images in zip(relevance.texts, relevance.images_of, strict=True):
        expected = [i for i in range(len(table)) if text in table.queries[i]]
        assert images.tolist() == expected
    for image, texts in enumerate(relevance.texts_of):
        assert [relevance.texts[t] for t in texts] == table.queries[image]


def test_both_directions() -> None:
    relevance = Relevance(
        ["a", "b"],
        [np.array([0, 1]), np.array([2])],
        [np.array([0]), np.array([0]), np.array([1])],
    )
    texts = torch.eye(2)
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    both = evaluate_retrieval(images, texts, relevance)
    # a: images 0, 2, 1 -> hits at 1 and 3; b: images 1, 2, 0 -> hit at 2.
    assert both.scores["text_to_photo"]["mAP"] == pytest.approx([(1 + 2 / 3) / 2, 0.5])
    assert both.as_dict()["text_to_photo"]["R@1"] == 0.5
    assert both.scores["photo_to_text"]["mAP"].tolist() == [1, 0.5, 1]
    assert both.mean_average_precision == pytest.approx((2 / 3 + 2.5 / 3) / 2)
    assert set(both.as_dict()["text_to_photo"]) == {"R@1", "R@5", "R@10", "mAP"}
