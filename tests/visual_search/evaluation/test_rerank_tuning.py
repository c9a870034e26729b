import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visual_search.evaluation import rerank_tuning
from visual_search.evaluation.metrics import average_precision
from visual_search.evaluation.rerank_tuning import RECIPES, choose, halves, steps_of, trials
from visual_search.ranking.rerank import rank
from visual_search.ranking.rerank_steps import Center


@pytest.fixture
def shifted() -> dict:
    """Products apart from each other, and all queries moved the same way: centring mends that."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(30, 16))
    products = [np.repeat(np.arange(30), 3).astype(str), np.repeat(np.arange(30), 2).astype(str)]
    queries, gallery = (
        centers[p.astype(int)] + 0.5 * rng.normal(size=(len(p), 16)) for p in products
    )
    return {
        "queries": F.normalize(torch.from_numpy(queries + 3.0).float()),
        "gallery": F.normalize(torch.from_numpy(gallery).float()),
        "query_products": products[0],
        "gallery_products": products[1],
    }


def test_halves_share_no_product_and_keep_the_gallery(shifted: dict) -> None:
    one, other = halves(**shifted, seed=1)
    assert not set(one.query_products) & set(other.query_products)
    assert len(one.queries) + len(other.queries) == 90
    assert len(one.gallery) == len(other.gallery) == 60
    again, _ = halves(**shifted, seed=2)
    assert set(again.query_products) != set(one.query_products)


def test_a_score_is_that_of_the_ranking_of_the_half_alone(shifted: dict) -> None:
    one, _ = halves(**shifted, seed=1)
    for steps in map(steps_of, RECIPES.values()):
        ranks = rank(one.queries, one.gallery, steps, 1000).numpy()
        expected = average_precision(ranks, one.gallery_products, one.query_products)
        assert one.score(steps) == pytest.approx(expected.mean(), abs=1e-12)


def test_the_error_of_a_gain_is_that_of_drawing_products_anew(shifted: dict) -> None:
    one, _ = halves(**shifted, seed=1)
    gain, error = one.gain((Center("sides"),), over=())
    assert gain == pytest.approx(one.score((Center("sides"),)) - one.score(()))
    differences = one.average_precisions((Center("sides"),)) - one.average_precisions(())
    names, rng = np.unique(one.query_products), np.random.default_rng(0)
    drawn = [
        np.concatenate(
            [differences[one.query_products == n] for n in rng.choice(names, len(names))]
        )
        for _ in range(2000)
    ]
    assert error == pytest.approx(np.std([d.mean() for d in drawn]), rel=0.1)


def test_the_choice_mends_what_is_wrong_and_nothing_else(
    shifted: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = tuple(options[:4] for options in rerank_tuning.SLOTS)
    monkeypatch.setattr(rerank_tuning, "SLOTS", slots)
    one, other = halves(**shifted, seed=0)
    calls: list[int] = []
    steps = choose(one, on_score=lambda: calls.append(1))
    assert len(calls) <= trials()
    assert any(isinstance(step, Center) and step.scope in ("sides", "joint") for step in steps)
    assert one.score(steps) > one.score(())
    assert other.score(steps) > 1.1 * other.score(())
