import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visual_search.data.dev_sets import DevSet
from visual_search.data.images import ImageItem
from visual_search.evaluation import rerank_tuning
from visual_search.evaluation.dev_set import EmbeddedDevSet
from visual_search.evaluation.metrics import average_precision
from visual_search.evaluation.rerank_tuning import RECIPES, choose, halves, steps_of, tune
from visual_search.model.checkpoint import load_checkpoint
from visual_search.ranking.export import exported_steps
from visual_search.ranking.rerank import describe_steps, parse_steps, rank
from visual_search.ranking.rerank_steps import Center

Sides = dict[str, Any]


def drawn(shift: float, noise: float) -> Sides:
    """Products apart from each other, and all queries moved the same way: centring mends that."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(30, 16))
    products = [np.repeat(np.arange(30), 3), np.repeat(np.arange(30), 2)]
    queries, gallery = (centers[p] + noise * rng.normal(size=(len(p), 16)) for p in products)
    return {
        "queries": F.normalize(torch.from_numpy(queries + shift).float()),
        "gallery": F.normalize(torch.from_numpy(gallery).float()),
        "query_products": products[0].astype(str),
        "gallery_products": products[1].astype(str),
    }


@pytest.fixture
def shifted() -> Sides:
    return drawn(3.0, 0.5)


def test_halves_share_no_product_and_keep_the_gallery(shifted: Sides) -> None:
    one, other = halves(**shifted, seed=1)
    assert not set(one.query_products) & set(other.query_products)
    assert len(one.queries) + len(other.queries) == 90
    assert len(one.gallery) == len(other.gallery) == 60
    again, _ = halves(**shifted, seed=2)
    assert set(again.query_products) != set(one.query_products)


def test_a_score_is_that_of_the_ranking_of_the_half_alone(shifted: Sides) -> None:
    one, _ = halves(**shifted, seed=1)
    for steps in map(steps_of, RECIPES.values()):
        ranks = rank(one.queries, one.gallery, steps, 1000).numpy()
        expected = average_precision(ranks, one.gallery_products, one.query_products)
        assert one.score(steps) == pytest.approx(expected.mean(), abs=1e-12)


def test_the_error_of_a_gain_is_that_of_drawing_products_anew(shifted: Sides) -> None:
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
    shifted: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = tuple(options[:4] for options in rerank_tuning.SLOTS)
    monkeypatch.setattr(rerank_tuning, "SLOTS", slots)
    one, other = halves(**shifted, seed=0)
    steps = choose(one)
    assert any(isinstance(step, Center) and step.scope in ("sides", "joint") for step in steps)
    assert one.score(steps) > one.score(())
    assert other.score(steps) > 1.1 * other.score(())


def as_embedded(sides: Sides, weights: Path) -> EmbeddedDevSet:
    photos = [ImageItem(Path("a.jpg"))] * 90
    products = sides["gallery_products"], sides["query_products"]
    dev_set = DevSet(photos[:60], photos, *products)
    return EmbeddedDevSet(dev_set, sides["gallery"], sides["queries"], weights / "model.json")


def test_what_beats_plain_on_the_other_half_is_written(
    shifted: Sides,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rerank_tuning, "SLOTS", tuple(x[:4] for x in rerank_tuning.SLOTS[:2]))
    before = json.loads((weights / "model.json").read_text())
    tune(as_embedded(shifted, weights), 2, 0, Path("data/dev"))
    printed = capsys.readouterr().out
    assert "| plain cosine |" in printed
    assert "| chosen |" in printed
    after = json.loads((weights / "model.json").read_text())
    assert "center" in [step["name"] for step in after["rerank"]]
    assert parse_steps(after.pop("rerank"), "test") == exported_steps(weights)
    tuning = after.pop("rerank_tuning")
    assert tuning["data"] == "dev"
    assert tuning["reranked_mAP"] > 1.1 * tuning["plain_mAP"]
    assert before.pop("rerank") == []  # an export ranks plainly until it is told otherwise
    assert after == before
    # What is exported from there keeps the steps.
    assert load_checkpoint(weights).facts["rerank"] == describe_steps(exported_steps(weights))


def test_a_model_that_nothing_betters_stays_as_it_was(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rerank_tuning, "SLOTS", tuple(x[:2] for x in rerank_tuning.SLOTS[:2]))
    before = (weights / "model.json").read_bytes()
    tune(as_embedded(drawn(0.0, 0.0), weights), 1, 0, Path("data/dev"))
    assert "stays as it was" in capsys.readouterr().out
    assert (weights / "model.json").read_bytes() == before
