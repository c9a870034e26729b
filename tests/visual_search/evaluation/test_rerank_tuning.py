import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands import refused
from tests.visual_search.evaluation.drawn import drawn
from visual_search.evaluation import rerank_tuning
from visual_search.evaluation.dev_set import EmbeddedDevSet
from visual_search.evaluation.metrics import average_precision
from visual_search.evaluation.rerank_tuning import (
    RECIPES,
    choose,
    gain,
    halves,
    scorer,
    tune,
)
from visual_search.model.checkpoint import load_checkpoint
from visual_search.ranking.export import exported_steps
from visual_search.ranking.k_reciprocal import KReciprocal
from visual_search.ranking.rerank import describe_steps, parse_steps, rank
from visual_search.ranking.rerank_steps import PCA, Center, Power


@pytest.fixture
def shifted() -> EmbeddedDevSet:
    """Centring mends it."""
    return drawn(0.5, 1, shift=3.0)


def test_halves_share_no_product_and_are_ranked_alone(shifted: EmbeddedDevSet) -> None:
    one, other = halves(shifted, seed=1)
    products = one.dev_set.query_products
    assert not set(products) & set(other.dev_set.query_products)
    assert len(one.queries) + len(other.queries) == 180
    assert len(one.gallery) == len(other.gallery) == 180
    assert set(halves(shifted, seed=2)[0].dev_set.query_products) != set(products)
    alone = replace(shifted.dev_set, query_products=np.zeros(180, dtype=int))
    refused("all queries are of one product", halves, replace(shifted, dev_set=alone), 1)
    score = scorer(one)
    for steps in RECIPES.values():
        ranks = rank(one.queries, one.gallery, steps, 1000).numpy()
        expected = average_precision(ranks, one.dev_set.gallery_products, products)
        np.testing.assert_allclose(score(steps), expected, atol=1e-12)


def test_the_error_of_a_gain_is_that_of_drawing_products_anew(shifted: EmbeddedDevSet) -> None:
    score, products = scorer(shifted), shifted.dev_set.query_products
    new, old = score((Center("sides"),)), score(())
    more, error = gain(new, old, products)
    assert more == pytest.approx(new.mean() - old.mean())
    names, rng = np.unique(products), np.random.default_rng(0)
    drawn = [
        np.concatenate([(new - old)[products == n] for n in rng.choice(names, len(names))])
        for _ in range(2000)
    ]
    assert error == pytest.approx(np.std([d.mean() for d in drawn]), rel=0.1)


def test_the_choice_mends_what_is_wrong_and_nothing_else(
    shifted: EmbeddedDevSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = tuple(options[:4] for options in rerank_tuning.SLOTS)
    monkeypatch.setattr(rerank_tuning, "SLOTS", slots)
    one, other = halves(shifted, seed=0)
    steps = choose(scorer(one), one.dev_set.query_products)
    assert any(isinstance(step, Center) and step.scope in ("sides", "joint") for step in steps)
    assert one.score(steps).mean() > one.score(()).mean()
    assert other.score(steps).mean() > 1.1 * other.score(()).mean()


def test_each_place_is_searched_with_the_others_held() -> None:
    wanted = (Power(0.7), Center("sides"), PCA(128, 0.5), KReciprocal(20, 6, 0.3))

    def score(steps: tuple[object, ...]) -> np.ndarray:
        return np.full(60, sum(step in steps for step in wanted) / 4 - len(steps) / 100)

    assert choose(score, np.arange(60)) == wanted


def test_what_beats_plain_on_the_other_half_is_written(
    shifted: EmbeddedDevSet,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rerank_tuning, "SLOTS", tuple(x[:4] for x in rerank_tuning.SLOTS[:2]))
    before = json.loads((weights / "model.json").read_text())
    tune(replace(shifted, description=weights / "model.json"), 2, 0, Path("data/dev"))
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
    tune(replace(drawn(0.0, 1), description=weights / "model.json"), 1, 0, Path("data/dev"))
    assert "stays as it was" in capsys.readouterr().out
    assert (weights / "model.json").read_bytes() == before
