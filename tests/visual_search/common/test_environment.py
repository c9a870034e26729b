"""What a training ran on, and how fast: kept with the run, without secrets."""

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import visual_search
from visual_search.common import environment
from visual_search.common.environment import StartSpeed, environment_in_words, environment_of


def accelerator(**others: Any) -> Any:
    facts = {"is_main_process": True, "device": torch.device("cpu"), "num_processes": 2}
    return SimpleNamespace(**facts | others)


def test_the_versions_the_machine_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "kit" / "visual_search"
    sources.mkdir(parents=True)
    (sources / "__init__.py").touch()
    git = ["git", "-C", str(sources.parent), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (
        ["init", "-q"],
        ["remote", "add", "origin", "https://oauth2:TOKEN@example.org/x.git"],
        ["add", "."],
        ["commit", "-qm", "x"],
    ):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    monkeypatch.setattr(visual_search, "__file__", str(sources / "__init__.py"))
    monkeypatch.setenv("HUB_TOKEN", "TOKEN")
    StartSpeed(tmp_path, accelerator(), 4)
    facts = environment_of(tmp_path)
    assert facts["commit"] == head.stdout.strip()
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["torch"] == metadata.version("torch")
    assert facts["packages"]["accelerate"] == metadata.version("accelerate")
    assert (facts["threads"], facts["processes"]) == (torch.get_num_threads(), 2)
    assert "TOKEN" not in (tmp_path / "environment.json").read_text()
    said = environment_in_words(facts)
    assert said.startswith(
        f"Python {platform.python_version()}; torch {facts['packages']['torch']}"
    )
    assert f"2 processes; commit {head.stdout[:12]}" in said
    (sources / "__init__.py").write_text("x = 1\n")
    assert environment.commit() == head.stdout.strip() + "+"


def test_the_speed_of_the_first_steps(tmp_path: Path) -> None:
    def groups(count: int) -> Iterator[list[int]]:
        for number in range(count):
            time.sleep(0.3 if number == 0 else 0.005)  # the first wait is passed over
            yield [0, 0]

    speed = StartSpeed(tmp_path, accelerator(), 4)
    assert environment_of(tmp_path).get("speed_at_the_start") is None
    seen = 0
    for _ in speed.timed(groups(25)):
        time.sleep(0.015)
        seen += 1
    assert seen == 25
    found = environment_of(tmp_path)["speed_at_the_start"]
    # 2 batches of 4 images on 2 processes in 20 ms, of which 15 ms are the model's.
    assert found["steps"] == 20
    assert 16 / 0.1 < found["images_per_second"] <= 16 / 0.02
    assert found["images_per_second"] < found["of_the_model_alone"] <= 16 / 0.015
    assert "images/s at the start" in environment_in_words(environment_of(tmp_path))
    before = (tmp_path / "environment.json").read_bytes()
    assert len(list(speed.timed(groups(3)))) == 3  # the next epoch is not timed
    other = StartSpeed(tmp_path, accelerator(is_main_process=False), 4)
    assert len(list(other.timed(groups(30)))) == 30
    assert (tmp_path / "environment.json").read_bytes() == before


def test_short_epochs_count_together_and_earlier_versions_say_nothing(tmp_path: Path) -> None:
    assert environment_of(tmp_path) == {}
    assert environment_in_words({}) == "not known"
    speed = StartSpeed(tmp_path, accelerator(), 4)
    for _ in range(2):
        assert len(list(speed.timed([[0], [0]]))) == 2
    assert environment_of(tmp_path)["speed_at_the_start"]["steps"] == 2
    (tmp_path / "environment.json").write_text("{")
    assert environment_of(tmp_path) == {}
    assert json.dumps(speed.facts)
