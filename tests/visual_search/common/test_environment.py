"""What a training ran on: kept with the run, without secrets."""

import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch

import visual_search
from tests.submissions import commit, git
from visual_search.common import environment
from visual_search.common.environment import environment_in_words, environment_of, write_environment


def test_the_versions_the_machine_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "kit" / "visual_search"
    sources.mkdir(parents=True)
    (sources / "__init__.py").touch()
    git(sources.parent, "init", "--quiet")
    git(sources.parent, "remote", "add", "origin", "https://oauth2:TOKEN@example.org/x.git")
    commit(sources.parent)
    head = git(sources.parent, "rev-parse", "HEAD").strip()
    monkeypatch.setattr(visual_search, "__file__", str(sources / "__init__.py"))
    monkeypatch.setenv("HUB_TOKEN", "TOKEN")
    write_environment(tmp_path, torch.device("cpu"), 2)
    facts = environment_of(tmp_path)
    assert facts["commit"] == head
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["torch"] == metadata.version("torch")
    assert facts["packages"]["accelerate"] == metadata.version("accelerate")
    assert (facts["threads"], facts["processes"]) == (torch.get_num_threads(), 2)
    assert "TOKEN" not in (tmp_path / "environment.json").read_text()
    said = environment_in_words(facts)
    assert said.startswith(
        f"Python {platform.python_version()}; torch {facts['packages']['torch']}"
    )
    assert f"2 processes; commit {head[:12]}" in said
    (sources / "__init__.py").write_text("x = 1\n")
    assert environment.commit() == head + "+"


def test_earlier_versions_say_nothing(tmp_path: Path) -> None:
    assert environment_of(tmp_path) == {}
    assert environment_in_words({}) == "not known"
    (tmp_path / "environment.json").write_text("{")
    assert environment_of(tmp_path) == {}
