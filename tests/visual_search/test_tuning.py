"""The search around a stand-in for training; `test_main_tune` trains for real."""

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.commands import refused
from visual_search.common.errors import UserError

pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from visual_search.common.run_folder import RunFolder
from visual_search.tuning import (
    OnValidation,
    combinations,
    ended,
    finished,
    plot,
    read_search_space,
    tune,
    write_best,
    write_grid,
)

SPACE = {
    "optim.head_lr": FloatDistribution(1e-5, 1e-1, log=True),
    "train.epochs": IntDistribution(1, 8),
}


def score_of(settings: Mapping[str, Any]) -> float:
    """Best at a rate of 1e-3 and 5 epochs."""
    distance = (
        abs(math.log10(settings["optim.head_lr"]) + 3) + abs(settings["train.epochs"] - 5) / 4
    )
    return 1 / (1 + distance)


def train_trial(settings: Mapping[str, Any], run: RunFolder, on_validation: OnValidation) -> float:
    run.start(json.dumps(dict(settings)))
    for part in ("best", "last"):
        (run.path / part).mkdir()
    for step in range(1, 4):
        on_validation(step, score_of(settings) * step / 3)
    return score_of(settings)


def test_it_finds_the_best_settings_and_stops_bad_trials(tmp_path: Path) -> None:
    study = tune(tmp_path, SPACE, train_trial, trials=10)
    assert len(ended(study)) == 10
    assert 0 < len(finished(study)) < 10  # some were stopped
    assert study.best_params["optim.head_lr"] == pytest.approx(1e-3, rel=3)
    assert abs(study.best_params["train.epochs"] - 5) <= 2
    assert study.best_value == max(score_of(t.params) for t in finished(study))
    assert all(isinstance(t.params["train.epochs"], int) for t in ended(study))
    # Only the best trial keeps its weights.
    kept = [run.name for run in (tmp_path / "trials").iterdir() if (run / "best").exists()]
    assert kept == [f"trial_{study.best_trial.number:03d}"]
    plot(study, tmp_path / "tuning.png")
    assert (tmp_path / "tuning.png").read_bytes()[:4] == b"\x89PNG"
    assert write_best(study, tmp_path) == tmp_path / "best.yml"
    comment, text = (tmp_path / "best.yml").read_text().split("\n", 1)
    assert f"{study.best_value:.4f}" in comment
    assert json.loads(text) == study.best_params


def test_a_trial_that_fails_is_kept_with_its_sentence(tmp_path: Path) -> None:
    def sometimes(settings: Mapping[str, Any], run: RunFolder, told: OnValidation) -> float:
        run.start("{}")
        if settings["optim.head_lr"] > 1e-3:
            raise UserError("the loss became nan; lower optim.head_lr")
        return 0.5

    study = tune(tmp_path, SPACE, sometimes, trials=4)
    failed = [trial for trial in study.trials if trial.params["optim.head_lr"] > 1e-3]
    assert 0 < len(failed) < 4
    assert len(ended(study)) == 4
    assert all(t.user_attrs["error"] == "the loss became nan; lower optim.head_lr" for t in failed)
    assert not {trial.number for trial in failed} & {trial.number for trial in finished(study)}


def test_what_stops_every_trial_stops_the_search(tmp_path: Path) -> None:
    def impossible(settings: Mapping[str, Any], run: RunFolder, told: OnValidation) -> float:
        raise UserError("nowhere does not exist")

    refused("nowhere does not exist", tune, tmp_path, SPACE, impossible, trials=3)
    # It does not count: the same command, mended, trains them all.
    assert len(finished(tune(tmp_path, SPACE, train_trial, trials=1))) == 1


def test_a_killed_search_continues_the_trial_that_was_under_way(tmp_path: Path) -> None:
    def dies(settings: Mapping[str, Any], run: RunFolder, told: OnValidation) -> float:
        run.start("{}")
        told(1, 0.1)
        if run.name == "trial_002":
            os.kill(os.getpid(), signal.SIGKILL)
        return score_of(settings)

    process = multiprocessing.get_context("fork").Process(
        target=tune, args=(tmp_path, SPACE, dies), kwargs={"trials": 6}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    seen: list[tuple[str, dict[str, Any]]] = []

    def watched(settings: Mapping[str, Any], run: RunFolder, told: OnValidation) -> float:
        seen.append((run.name, dict(settings)))
        return score_of(settings)

    study = tune(tmp_path, SPACE, watched, trials=6)
    assert len(ended(study)) == 6
    killed = study.trials[2]
    assert killed.state.name == "FAIL"
    assert seen[0] == ("trial_002", killed.params)  # with its settings, in its folder
    assert len(seen) == 4
    assert len({name for name, _ in seen}) == 4


def test_a_search_space_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "space.yml"
    path.write_text(
        "optim.head_lr: {low: 1e-5, high: 3.0e-3, log: true}\n"
        "train.epochs: {low: 2, high: 9}\n"
        "margin.name: {choices: [arcface, cosface]}\n"
        "optim.betas: {choices: [[0.9, 0.99], [0.8, 0.9]]}\n"
        "optim.weight_decay: {choices: [5e-4, 1e-3]}\n"
    )
    assert read_search_space(path) == {
        "optim.head_lr": FloatDistribution(1e-5, 3e-3, log=True),
        "train.epochs": IntDistribution(2, 9),
        "margin.name": CategoricalDistribution(("arcface", "cosface")),
        "optim.betas": CategoricalDistribution(("[0.9, 0.99]", "[0.8, 0.9]")),
        "optim.weight_decay": CategoricalDistribution((5e-4, 1e-3)),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must be a table such as"),
        ("a: 3", "a: 3 is no range; write"),
        ("a: {low: 1}", "is no range"),
        ("a: {low: 1, high: 2, lg: true}", "is no range"),
        ("a: {choices: []}", "is no range"),
        ("a: {low: x, high: 2}", "could not convert string to float: 'x'"),
        ("a: {low: 1, high: .inf}", "low and high must be numbers"),
        ("a: {low: 3, high: 2}", "`low <= high` must hold"),
        ("a: {low: 0.0, high: 2, log: true}", "`low > 0` must hold"),
        ("a: {low: 1, high: 2, log: often}", "log is true or false, not 'often'"),
    ],
)
def test_a_bad_search_space_names_its_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "space.yml"
    path.write_text(text)
    assert str(path) in refused(words, read_search_space, path)


@pytest.mark.parametrize(
    "later",
    [
        {"a": [1, 2, 3], "b": ["[]", "[1]"]},
        {"a": [3, 4], "b": ["[]", "[1]"]},
        {"a": [1, 2]},
        {"a": [1, 2], "b": ["[]", "[1]"], "c": [1, 2]},
    ],
    ids=["more", "others", "fewer keys", "more keys"],
)
def test_a_grid_is_continued_with_the_same_choices_or_refused(
    later: dict[str, list[Any]], tmp_path: Path
) -> None:
    def grid(space: Mapping[str, list[Any]]) -> str:
        spread = {key: CategoricalDistribution(choices) for key, choices in space.items()}
        rows = combinations(spread, tmp_path)
        quick = lambda settings, run, told: run.start("x") or 0.5  # noqa: E731
        study = tune(tmp_path, spread, quick, trials=len(rows), grid=rows)
        assert len(finished(study)) == len(rows)
        return write_grid(study, spread, tmp_path)

    first: dict[str, list[Any]] = {"a": [1, 2], "b": ["[]", "[1]"]}
    assert grid(first) == grid(first)
    refused("begun with other keys or choices .*a: one of 1, 2", grid, later)


def test_a_grid_trains_what_earlier_draws_left_out(tmp_path: Path) -> None:
    space = {"a": CategoricalDistribution([1, 2, 2]), "b": CategoricalDistribution("xy")}
    quick = lambda settings, run, told: run.start("x") or 0.5  # noqa: E731
    asked = [trial.params for trial in ended(tune(tmp_path, space, quick, trials=4))]
    rows = combinations(space, tmp_path)
    missing = [row for row in rows if row not in asked]
    assert 0 < len(missing) < len(asked)
    done = [trial.params for trial in finished(tune(tmp_path, space, quick, trials=0, grid=rows))]
    assert done == asked + missing
