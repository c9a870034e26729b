import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from my_submission.user_config import My_Ranker
from tests.commands import stopped, told
from tests.conftest import write_csv
from visual_search import main_evaluate
from visual_search.data.dev_sets import read_dev_set
from visual_search.evaluation.dev_set import embed_dev_set
from visual_search.main_evaluate import main
from visual_search.ranking.rerank import parse_steps, rank


def score_of(place: Path) -> tuple[object, ...]:
    """The command that scores the model in a folder on the development set beside it."""
    data = ("--data-folder", place / "development_test_data")
    return ("score", "--run", place / "weights", "--cache", place / "cache", *data)


def test_a_second_call_reads_the_embeddings(
    weights: Path, dev_folder: Path, tmp_path: Path
) -> None:
    first = told(main, *score_of(tmp_path))
    assert "10 gallery images embedded" in first
    assert "no match" not in first
    second = told(main, *score_of(tmp_path))
    assert "10 gallery images read from the cache" in second
    assert "10 query images read from the cache" in second
    assert second.splitlines()[-2:] == first.splitlines()[-2:]
    table = (dev_folder / "queries.csv").read_text()
    (dev_folder / "queries.csv").write_text(table.replace("58,58,104", "58,58,999", 1))
    said = told(main, *score_of(tmp_path), "--input_size", "48")
    assert "10 gallery images embedded" in said
    assert "1 of 10 queries have no match in the gallery; each counts as 0" in said


def test_a_table_is_ranked_each_against_all_others(weights: Path, dev_folder: Path) -> None:
    rows = [(f"gallery/{product}_{photo}.png", product, 1) for product in "01" for photo in "01"]
    table = write_csv(dev_folder / "t.csv", ["file_name", "label", "is_test"], rows[:3])
    options = ("--run", weights, "--table", table, "--cache", dev_folder / "cache")
    said = told(main, "score", *options)
    assert "2 of them are queries, each against all others" in said
    assert "needs queries apart from the gallery" in stopped(main, "tune-rerank", *options)


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
def test_an_option_that_would_do_nothing_is_refused(call: str, sentence: str) -> None:
    assert sentence in stopped(main, *call.split())


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    assert "does not exist" in stopped(main, *score_of(tmp_path))
    said = stopped(main, *score_of(tmp_path), "--fold", "2")
    assert "--root and --fold belong to --table" in said
