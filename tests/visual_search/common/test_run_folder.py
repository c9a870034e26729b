import importlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from PIL import Image

from tests.commands import inside, refused
from tests.conftest import write_yaml
from tests.kills import another_process, killed_at_each_change, wait_for
from visual_search.common.errors import UserError
from visual_search.common.run_folder import (
    RunFolder,
    changed_keys,
    load_state,
    newest_state,
    save_state,
)


def test_an_unfinished_run_continues_a_finished_one_is_replaced_only_when_asked(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path, "a")
    assert not run.check("x: 1\n", overwrite=False)
    run.start("x: 1\ntrain:\n  epochs: 3\n  save_steps: 1\n")
    run.log(kind="step", step=1)
    # What changes no weight may differ.
    assert run.check("x: 1\ntrain:\n  epochs: 3\n  save_steps: 9\n", overwrite=False)
    longer = "x: 1\ntrain:\n  epochs: 4\n  save_steps: 1\n"
    refused(r"train\.epochs: 3 -> 4.*--overwrite true", run.check, longer, overwrite=False)
    (run.path / "result.json").write_text("{}")
    refused("finished run", run.check, longer, overwrite=False)
    assert not run.check("x: 2\n", overwrite=True)
    assert run.metrics() == [{"kind": "step", "step": 1}]
    run.start("x: 2\n")
    assert run.metrics() == []
    assert (run.path / "config.yml").read_text() == "x: 2\n"


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("{}", "{new: {list: '', share: 0.0, use: false, rerank: []}}", []),
        ("{}", "{new: {by_size: true}}", ["new.by_size: None -> True"]),
        ("{gone: none}", "{}", []),
        ("{margin: {weight: 0.0, low: 1}}", "{margin: {weight: 0, low: 2}}", []),
        ("{margin: {weight: 1, low: 1}}", "{margin: {weight: 1, low: 2}}", ["margin.low: 1 -> 2"]),
    ],
)
def test_what_another_version_did_not_know_is_no_change_while_it_is_off(
    old: str, new: str, changes: list[str]
) -> None:
    assert changed_keys(old, new) == changes


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["photos", "file", "link"])
def test_what_is_no_run_is_left_as_it_is(tmp_path: Path, kind: str, overwrite: bool) -> None:
    run, kept = RunFolder(tmp_path / "runs", "a"), tmp_path / "kept"
    for folder in (run.path.parent, kept):
        folder.mkdir()
    if kind == "photos":
        run.path.mkdir()
        (run.path / "holiday.jpg").touch()
    elif kind == "file":
        run.path.touch()
    else:  # to a run, whose place the new one would take
        RunFolder(tmp_path, "kept").start("x: 1\n")
        run.path.symlink_to(kept)
    before = sorted(tmp_path.rglob("*"))
    words = "is a link" if kind == "link" else "no run, since it has no config.yml"
    for attempt in (lambda: run.check("x: 1\n", overwrite), lambda: run.start("x: 1\n")):
        refused(words, attempt)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_replaced_run_leaves_nothing_behind(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.path.mkdir()
    (run.path / ".config.yml.7.tmp").touch()  # killed while it wrote its first file
    run.start("x: 1\n")
    (run.best).mkdir()
    run.start("x: 2\n")
    assert sorted(tmp_path.rglob("*")) == [run.path, run.path / "config.yml"]


def test_files_that_a_killed_run_has_begun_go_when_it_is_continued(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.start("x: 1\n")
    begun, folder = run.path / "best" / ".model.safetensors.x.tmp", run.path / "e" / ".export.tmp"
    for place in (begun.parent, folder):
        place.mkdir(parents=True)
    begun.touch()
    with run.lock():
        assert not begun.exists()
        assert folder.is_dir()


@contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Another process has the lock, and has a forked worker that outlives it by some seconds."""
    ready = run.path.with_name("ready")

    def work() -> None:
        holder = os.getpid()
        with run.lock():
            if os.fork():
                ready.touch()
                time.sleep(120)
            while os.getppid() == holder:
                time.sleep(0.1)
            time.sleep(5)

    with another_process(work):
        wait_for(ready.exists)
        yield


def test_a_lock_is_one_process_s_and_ends_with_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    with held(run), pytest.raises(UserError, match="another process is at work on it"), run.lock():
        pass
    with run.lock():  # although the worker of the killed process still sleeps
        pass
    with run.lock():
        pass


@pytest.mark.parametrize("command", ["main_arcface", "main_phases", "main_tune", "main_soup"])
def test_the_second_starter_of_a_name_is_told(
    command: str, tmp_path: Path, small_phase: dict[str, Any]
) -> None:
    runs = tmp_path / "runs"
    config = write_yaml(tmp_path / "phase.yml", small_phase)
    phases = [{"name": "one", "config": "phase.yml"}]
    chain = write_yaml(tmp_path / "chain.yml", {"name": "x", "phases": phases})
    arguments: dict[str, tuple[object, ...]] = {
        "main_arcface": ("--config", config, "--runs", runs, "--name", "x"),
        "main_phases": ("--config", chain, "--runs", runs),
        "main_tune": ("--config", config, "--runs", runs, "--name", "x", "--trials", 1),
        "main_soup": ("--runs", runs / "a", runs / "b", "--folder", runs, "--name", "x"),
    }
    main = importlib.import_module(f"visual_search.{command}").main
    with held(RunFolder(runs, "x")):
        done = inside(main, *arguments[command])
    assert done.returncode == 2, done.stderr
    assert f"error: {runs / 'x'} is in use: another process" in done.stderr
    assert not (runs / "x").exists()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "/tmp", ".", "..", "a b"])
def test_names_stay_inside_the_runs_folder(tmp_path: Path, name: str) -> None:
    refused("--name", RunFolder, tmp_path, name)


def test_metrics_are_cut_back_to_a_state_and_drawn(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.start("")
    run.log(kind="step", step=1, loss=1.0, lr_head=1e-3, lr_backbone=1e-5)
    run.log(kind="validation", step=1, mAP=0.3)
    length, kept = run.metrics_bytes(), run.metrics()
    run.log(kind="step", step=2)
    for place in (length, 10_000):
        run.cut_metrics(place)
        assert run.metrics() == kept
    with Image.open(run.plot()) as picture:
        assert picture.size[0] > 800


ALONE = PartialState(cpu=True)


def test_killed_while_it_saves_one_whole_state_remains(tmp_path: Path) -> None:
    def newest() -> tuple[dict[str, Any], dict[str, Any]]:
        place = newest_state(tmp_path)
        assert place is not None
        return load_state(place, ALONE)

    def work() -> None:  # at the end of an epoch a step may be saved a second time
        for n, step in enumerate((5, 5, 6), 1):
            save_state(tmp_path, step, {"n": n}, {"x": [torch.ones(2) * n, "a"]}, ALONE)

    assert newest_state(tmp_path) is None
    save_state(tmp_path, 5, {"n": 0}, {}, ALONE)
    for _ in killed_at_each_change(work):
        newest()
    common, own = newest()
    assert common == {"n": 3}
    assert torch.equal(own["x"][0], torch.ones(2) * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_a_state_that_cannot_be_used_says_why_and_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "run",))

    save_state(tmp_path, 1, {}, {}, ALONE)
    place = newest_state(tmp_path)
    assert place is not None
    two = SimpleNamespace(process_index=0, num_processes=2)
    refused("trained by 1 processes, this is one of 2", load_state, place, two)
    for spoil in (
        lambda path: path.write_bytes(b"PK no zip"),
        lambda path: torch.save(Evil(), path),
    ):
        spoil(place / "common.pt")
        refused(r"common\.pt is damaged", load_state, place, ALONE)
    assert not (tmp_path / "run").exists()
    facts = json.loads((place / "complete.json").read_text())
    (place / "complete.json").write_text(json.dumps(facts | {"format": 99}))
    refused("newer kit", load_state, place, ALONE)
