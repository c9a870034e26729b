"""The search command as a user types it, small: a tiny timm model on drawn products."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import stopped, told
from tests.conftest import write_yaml
from visual_search.main_tune import main

pytest.importorskip("optuna")


@pytest.fixture
def command(tmp_path: Path, small_phase: dict[str, Any]) -> tuple[str, ...]:
    write_yaml(tmp_path / "phase.yml", {**small_phase, "train": {"epochs": 1}})
    (tmp_path / "space.yml").write_text(
        "optim.head_lr: {low: 1e-4, high: 1e-2, log: true}\n"
        "optim.weight_decay: {low: 1e-3, high: 0.5, log: true}\n"
    )
    return (
        *("--config", str(tmp_path / "phase.yml"), "--search", str(tmp_path / "space.yml")),
        *("--runs", str(tmp_path / "runs"), "--name", "search"),
    )


@pytest.mark.usefixtures("untrained")  # trials that train: test_universal.py
def test_a_search_from_the_command_line(command: tuple[str, ...], tmp_path: Path) -> None:
    said = told(main, *command, "--trials", "1")
    folder = tmp_path / "runs" / "search"
    assert "best of 1: trial 0" in said
    assert "--config " + str(folder / "best.yml") in said

    # Two in all: one more. With other settings it would be another search.
    more = told(main, *command, "--trials", "2")
    assert "best of 2: trial" in more
    assert "trial 1: optim.head_lr " in more
    assert "trial 0: optim" not in more
    drawn = re.search(r"trial 0: optim.head_lr \S+", said)
    assert drawn
    assert drawn[0][7:] not in more
    assert "trial" not in told(main, *command, "--trials", "1").partition("best of 2")[0]
    assert (folder / "tuning.png").read_bytes()[:4] == b"\x89PNG"
    best = yaml.safe_load((folder / "best.yml").read_text())
    assert 1e-4 <= best["optim"]["head_lr"] <= 1e-2
    assert 1e-3 <= best["optim"]["weight_decay"] <= 0.5
    assert best["dataset"]["input_size"] == 32
    assert best["train"]["epochs"] == 1
    (folder.with_name("other") / "notes").mkdir(parents=True)
    other = (*command[:-1], "other", "--trials", "1")
    assert "is no search, since it has no study.db" in stopped(main, *other)
    assert "train.epochs: 1 -> 2" in stopped(main, *command, "--trials", "3", "--train.epochs", "2")


@pytest.mark.parametrize(
    ("space", "options", "words"),
    [
        ("optim.head_lrs: {low: 1e-4, high: 1e-2}", (), "optim.head_lrs"),
        (None, ("--dataset.dev_set.eval_root", "nowhere"), "nowhere does not exist"),
        (None, ("--trials", "0"), "--trials must be 1 or more"),
    ],
)
def test_bad_input_is_one_sentence(
    command: tuple[str, ...],
    tmp_path: Path,
    space: str | None,
    options: tuple[str, ...],
    words: str,
) -> None:
    if space is not None:
        (tmp_path / "space.yml").write_text(space)
    said = stopped(main, *command, "--trials", "2", *options)
    assert said.splitlines()[-1].startswith("error: ")
    assert words in said
    assert "Traceback" not in said
