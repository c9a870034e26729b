import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from my_submission.user_config import My_Ranker
from tests.commands import refused
from visual_search import main_evaluate
from visual_search.data.dev_sets import DevSet, read_dev_set
from visual_search.data.images import ImageItem
from visual_search.evaluation import rerank_tuning
from visual_search.evaluation.dev_set import EmbeddedDevSet, embed_dev_set
from visual_search.evaluation.rerank_tuning import tune
from visual_search.model.checkpoint import load_checkpoint
from visual_search.ranking.export import exported_steps
from visual_search.ranking.rerank import describe_steps, parse_steps, rank


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> None:
    given = ["score", "--run", str(tmp_path / "weights"), "--cache", str(tmp_path / "cache")]
    given += ["--data-folder", str(tmp_path / "development_test_data"), *arguments]
    monkeypatch.setattr(sys, "argv", ["main_evaluate", *given])
    main_evaluate.main()


def test_an_export_ranks_plainly_until_it_is_told_otherwise(weights: Path) -> None:
    assert json.loads((weights / "model.json").read_text())["rerank"] == []
    assert exported_steps(weights) == ()


def test_a_second_call_reads_the_embeddings(
    weights: Path,
    dev_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(monkeypatch, tmp_path)
    first = capsys.readouterr().out
    assert "10 gallery images embedded" in first
    assert "no match" not in first
    run(monkeypatch, tmp_path)
    second = capsys.readouterr().out
    assert "10 gallery images read from the cache" in second
    assert "10 query images read from the cache" in second
    assert second.splitlines()[-2:] == first.splitlines()[-2:]
    table = (dev_folder / "queries.csv").read_text()
    (dev_folder / "queries.csv").write_text(table.replace("58,58,104", "58,58,999", 1))
    run(monkeypatch, tmp_path, "--input_size", "48")
    said = capsys.readouterr().out
    assert "10 gallery images embedded" in said
    assert "1 of 10 queries have no match in the gallery; each counts as 0" in said


def write_steps(weights: Path, steps: Sequence[Mapping[str, object]]) -> None:
    values = json.loads((weights / "model.json").read_text())
    values["rerank"] = steps
    (weights / "model.json").write_text(json.dumps(values))


def test_the_ranker_applies_what_model_json_names(
    weights: Path, dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(weights))
    embedded = embed_dev_set(weights, read_dev_set(dev_folder), 0, tmp_path / "cache")
    tables = (str(dev_folder), str(dev_folder / "gallery.csv"), str(dev_folder / "queries.csv"))
    seen = []
    reranked: list[dict[str, object]] = [
        {"name": "center", "scope": "sides"},
        {"name": "k_reciprocal", "k1": 4, "k2": 2},
    ]
    cases: list[list[dict[str, object]]] = [[], reranked]
    for steps in cases:
        write_steps(weights, steps)
        ranks = My_Ranker(*tables).predict_product_ranks()
        expected = rank(embedded.queries, embedded.gallery, parse_steps(steps, "test"), 1000)
        np.testing.assert_array_equal(ranks[:, :10], expected.numpy())
        seen.append(ranks)
    assert (seen[0] != seen[1]).any()
    write_steps(weights, [{"name": "no such step"}])
    with pytest.raises(NameError, match=r"model\.json: rerank\[0\]\.name is 'no such step'"):
        My_Ranker(*tables)


def shifted_dev_set(weights: Path, shift: float, noise: float) -> EmbeddedDevSet:
    """Thirty products; all queries are moved the same way, which centring by sides mends."""
    rng = np.random.default_rng(0)
    centers, products = rng.normal(size=(30, 16)), np.repeat(np.arange(30), 3)
    sides = [centers[products] + noise * rng.normal(size=(90, 16)) + s for s in (0.0, shift)]
    gallery, queries = (F.normalize(torch.from_numpy(side).float()) for side in sides)
    items = [ImageItem(Path("a.jpg"))] * 90
    dev_set = DevSet(items, items, products.astype(str), products.astype(str))
    return EmbeddedDevSet(dev_set, gallery, queries, weights / "model.json")


def test_tuning_writes_what_beats_plain_on_the_other_half(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rerank_tuning, "SLOTS", tuple(x[:3] for x in rerank_tuning.SLOTS[:2]))
    before = json.loads((weights / "model.json").read_text())
    tune(shifted_dev_set(weights, 3.0, 0.4), 2, 0, Path("data/dev"))
    printed = capsys.readouterr().out
    assert "| plain cosine |" in printed
    assert "| chosen |" in printed
    after = json.loads((weights / "model.json").read_text())
    assert {"name": "center", "scope": "sides"} in after["rerank"]
    assert parse_steps(after.pop("rerank"), "test") == exported_steps(weights)
    tuning = after.pop("rerank_tuning")
    assert tuning["data"] == "dev"
    assert tuning["reranked_mAP"] > 1.1 * tuning["plain_mAP"]
    before.pop("rerank")
    assert after == before
    # What is exported from there keeps the steps.
    checkpoint = load_checkpoint(weights)
    assert checkpoint.facts["rerank"] == describe_steps(exported_steps(weights))


def test_tuning_leaves_a_model_that_nothing_betters(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rerank_tuning, "SLOTS", tuple(x[:2] for x in rerank_tuning.SLOTS[:2]))
    before = (weights / "model.json").read_bytes()
    tune(shifted_dev_set(weights, 0.0, 0.0), 1, 0, Path("data/dev"))
    assert "stays as it was" in capsys.readouterr().out
    assert (weights / "model.json").read_bytes() == before


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("--run a --input_size 48", "score --run a --input_size 48"),
        ("--run a --tasks t.yml u.yml --rerank", "tasks --run a --tasks t.yml u.yml --rerank"),
        ("--tasks t.yml --compare a b --metric R@1", "compare a b --tasks t.yml --metric R@1"),
        ("--run a --tune-rerank --splits 2", "tune-rerank --run a --splits 2"),
    ],
)
def test_the_former_spelling_goes_on_working_and_says_the_new_one(
    before: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_evaluate.with_command(before.split()) == now.split()
    assert capsys.readouterr().err == f"now spelled: {main_evaluate.PROGRAM} {now}\n"
    assert main_evaluate.with_command(now.split()) == now.split()
    assert capsys.readouterr().err == ""
    main_evaluate.build_parser().parse_args(now.split())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("tasks --tasks t.yml", "arguments are required: --run"),
        ("compare a b", "arguments are required: --tasks"),
        ("compare a --tasks t.yml", "arguments are required: B"),
        ("tasks --run a --tasks t.yml --data-folder d", "unrecognized arguments: --data-folder d"),
        ("compare a b --tasks t.yml --trackers mlflow", "unrecognized arguments: --trackers"),
        ("score --run a --rerank", "unrecognized arguments: --rerank"),
        ("score --run a --table t.csv --data-folder d", "not allowed with argument --table"),
        ("tune-rerank --run a --splits 0", "'0' is no whole number, 1 or more"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str, sentence: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["main_evaluate", *call.split()])
    with pytest.raises(SystemExit):
        main_evaluate.main()
    assert sentence in capsys.readouterr().err


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("does not exist", run, monkeypatch, tmp_path)
    refused("--root and --fold belong to --table", run, monkeypatch, tmp_path, "--fold", "2")
