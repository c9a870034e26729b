"""The chain command as a user types it, small: two phases on drawn products."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.warm import run_python
from visual_search.model.checkpoint import fingerprint


@pytest.fixture
def chain(tmp_path: Path, small_phase: dict[str, Any]) -> Path:
    first = {
        **small_phase,
        "optim": {"head_lr": 0.01, "backbone_lr_ratio": 1.0, "warmup_steps": 4},
        "train": {"epochs": 2},
    }
    (tmp_path / "first.yml").write_text(yaml.safe_dump(first))
    second = {"train.epochs": 1, "margin.weight": 0.0, "pairs": {"name": "contrastive"}}
    listed = [
        {"name": "first", "config": "first.yml"},
        {"name": "second", "config": "first.yml", "overrides": second},
    ]
    path = tmp_path / "chain.yml"
    path.write_text(yaml.safe_dump({"phases": listed}))
    return path


# The demo of `.ci/run` trains a chain of five; a chain of stand-ins is in test_phase_chain.py.
@pytest.mark.slow
def test_two_phases_from_the_command_line(chain: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = ("--config", str(chain), "--runs", str(runs))
    done = run_python("-m", "visual_search.main_phases", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$ python -m visual_search.main_arcface --config" in done.stdout
    results = {name: json.loads((runs / name / "result.json").read_text()) for name in names()}
    assert results["second"]["pretrain_fingerprint"] == fingerprint(runs / "first")
    saved = yaml.safe_load((runs / "second" / "config.yml").read_text())
    assert saved["pretrain_model"] == (runs / "first").as_posix()
    assert saved["pairs"]["name"] == "contrastive"
    rows = json.loads((runs / "chain" / "phases.json").read_text())["phases"]
    assert [row["mAP"] for row in rows] == [results[name]["mAP"] for name in names()]
    for name in names():
        assert f"| {name} | {results[name]['mAP']:.4f} |" in done.stdout

    again = run_python("-m", "visual_search.main_phases", *command)
    assert again.returncode == 0, again.stderr
    assert "main_arcface" not in again.stdout
    assert again.stdout.count("finished, unchanged") == 2

    text = chain.read_text()
    chain.write_text(text.replace("train.epochs: 1", "train.epochs: 3"))
    refused = run_python("-m", "visual_search.main_phases", *command)
    assert refused.returncode == 2
    assert "train.epochs: 1 -> 3" in refused.stderr
    assert "--retrain" in refused.stderr


def names() -> tuple[str, str]:
    return "first", "second"
