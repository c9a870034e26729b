"""Runs whose data changed: what goes on, what is trained anew, what is refused, what is said."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

import pytest
from accelerate import Accelerator

from tests.commands import inside, refused, stopped, told
from tests.conftest import csv_rows, draw_product, read_phase, write_csv, write_yaml
from visual_search import main_arcface, main_phases, main_tune, phase_chain
from visual_search.common.run_folder import RunFolder
from visual_search.config import PhaseConfig
from visual_search.evaluation.identity import (
    averaged,
    changed_data,
    differences,
    identity_of,
    read_identity,
)
from visual_search.phase import ImagePhase
from visual_search.train import Trainer, train_phase

Names = tuple[str, ...]
PhaseOf = Callable[..., PhaseConfig]
TRAINED: Names = ("a", "b", "c", "d")
OTHERS: Names = ("e", "f", "g", "h")


def write_table(folder: Path, names: Names) -> Path:
    """Three images of each product, and the table of them."""
    rows = [(f"{name}_{number}.png", name) for name in names for number in range(3)]
    for file, name in rows:
        draw_product(sum(name.encode()), int(file[-5]), 32).save(folder / file)
    return write_csv(folder / "table.csv", ["file_name", "label"], rows)


@pytest.fixture
def config(tmp_path: Path, small_phase: dict[str, Any]) -> Path:
    """A phase on one table of four classes."""
    table = write_table(tmp_path, TRAINED)
    values = {**small_phase, "train": {"epochs": 2, "save_steps": 1}}
    values["dataset"]["product10k"] = {"use": False}
    values["dataset"] |= {"tables": [{"file": str(table)}], "batch_size": 4}
    values["optim"] = {"warmup_steps": 1}
    return write_yaml(tmp_path / "phase.yml", values)


def train(config: Path, name: str, *options: object) -> CompletedProcess[str]:
    runs = config.parent / "runs"
    common = ("--config", config, "--runs", runs, "--name", name)
    return inside(main_arcface.main, *common, *options)


def chained(config: Path, *options: object) -> CompletedProcess[str]:
    phases = [{"name": "one", "config": config.name}]
    chain = write_yaml(config.parent / "chain.yml", {"phases": phases})
    return inside(main_phases.main, "--config", chain, "--runs", config.parent / "runs", *options)


@pytest.fixture
def killed(config: Path) -> Path:
    """A run that ended with its first epoch, with a state to go on from."""
    with mock.patch.object(Trainer, "_validate", side_effect=KeyboardInterrupt):
        assert train(config, "one").returncode == 130
    run = config.parent / "runs" / "one"
    assert list(run.glob("state/step-*/complete.json"))
    return run


def double(folder: Path) -> None:
    write_table(folder, (*TRAINED, *OTHERS))


def rename_a_class(folder: Path) -> None:
    table = folder / "table.csv"
    table.write_text(table.read_text().replace(",a", ",z"))


def swap_an_image(folder: Path) -> None:
    draw_product(9, 9, 48).save(folder / "a_0.png")


def other_queries(folder: Path) -> None:
    table = folder / "development_test_data" / "queries.csv"
    table.write_text("".join(table.read_text().splitlines(True)[:-1]))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "twice as much": (double, r"table.csv has changed; 12 -> 24 images; 4 -> 8 classes"),
    "a class renamed": (rename_a_class, r"table.csv has changed; the classes are others, or in"),
    "another image": (swap_an_image, r"1 of 12 image files .* other sizes, such as .*a_0.png"),
    "other queries": (other_queries, r"queries.csv has changed"),
}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_run_goes_on_with_the_same_data_only(killed: Path) -> None:
    folder = killed.parent.parent
    config, before = folder / "phase.yml", contents(folder)
    for name, (make, words) in CHANGES.items():
        make(folder)
        assert re.search(words.partition(";")[0], " ".join(changed_data(killed))), name
        if name in ("twice as much", "a class renamed", "another image"):
            said = train(config, "one")
            assert said.returncode == 2, name
            assert re.search(rf"runs/one was started with other data \(.*{words}", said.stderr)
        for path, content in before.items():
            assert path.suffix != ".safetensors" or path.read_bytes() == content, name
            path.write_bytes(content)
    double(folder)
    refused = chained(config)
    assert refused.returncode == 2
    assert "Train it anew with --retrain, or change them back" in refused.stderr
    # Of an earlier version, which kept no data.json, the classes tell.
    (killed / "data.json").unlink()
    (folder / "table.csv").write_bytes(before[folder / "table.csv"])
    rename_a_class(folder)
    assert "the classes are others, or in another order" in train(config, "one").stderr
    (folder / "table.csv").write_bytes(before[folder / "table.csv"])
    done = train(config, "one")
    assert done.returncode == 0, done.stderr
    assert "has no data.json: whether its data are the same is not known" in done.stdout
    assert "continues in epoch 1" in done.stdout
    assert (killed / "data.json").read_bytes() == before[killed / "data.json"]


@pytest.mark.usefixtures("untrained")
def test_a_run_killed_before_it_learnt_starts_with_what_is_there(config: Path) -> None:
    assert train(config, "one").returncode == 0
    run = config.parent / "runs" / "one"
    (run / "result.json").unlink()
    double(config.parent)
    assert changed_data(run) == []
    assert train(config, "one", "--train.epochs", "1").returncode == 2  # other settings, still
    assert train(config, "one").returncode == 0
    kept = read_identity(run)
    assert kept is not None
    assert (kept.images, kept.classes) == (24, 8)


@pytest.mark.usefixtures("untrained")
def test_a_finished_phase_of_other_data_is_trained_anew(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(config, "one").returncode == 0
    anew: list[bool] = []
    monkeypatch.setattr(phase_chain, "_train", lambda *words: anew.append(words[3]))
    assert "one: finished, unchanged\n" in chained(config).stdout
    double(config.parent)
    refused = chained(config)
    assert refused.returncode == 2
    assert f"trained with other settings or data: {config.parent / 'table.csv'} has" in (
        refused.stderr
    )
    assert "one: trains anew; changed: " in chained(config, "--retrain").stdout
    assert anew == [True]
    (config.parent / "runs" / "one" / "data.json").unlink()
    assert "unchanged (it has no data.json to compare its data with)" in chained(config).stdout


@pytest.mark.usefixtures("untrained")
def test_a_search_is_of_one_set_of_data(config: Path) -> None:
    space = config.with_name("space.yml")
    space.write_text("optim.head_lr: {low: 1e-4, high: 1e-3}\n")
    place = ("--runs", config.parent / "runs", "--name", "search")
    common = ("--config", config, "--search", space, *place, "--train.epochs", "1")
    told(main_tune.main, *common, "--trials", "1")
    double(config.parent)
    said = stopped(main_tune.main, *common, "--trials", "2")
    assert "begun with other settings or data (" in said


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', "[" * 100_000, '{"format": 99}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    refused(r"data\.json", read_identity, tmp_path)


@pytest.fixture
def folds(tmp_path: Path, small_phase: dict[str, Any]) -> PhaseOf:
    """A phase on one fold of two, by whole classes, which the other fold judges."""
    listed = csv_rows(write_table(tmp_path, (*TRAINED, *OTHERS)))
    rows = [[*row.values(), int(row["label"] in TRAINED)] for row in listed]
    table = str(write_csv(tmp_path / "folds.csv", ["file_name", "label", "fold"], rows))

    def phase(fold: int, **options: Any) -> PhaseConfig:
        dataset = {
            **small_phase["dataset"],
            "product10k": {"use": False},
            "tables": [{"file": table, "fold": fold}],
            "dev_set": {"table": table, "fold": fold},
            "batch_size": 4,
        }
        settings = {**small_phase, "dataset": dataset, "train": {"epochs": 1}, **options}
        config: PhaseConfig = read_phase(tmp_path / "fold.yml", settings)[0]
        return config

    return phase


def trained(phase: PhaseConfig, folder: Path) -> str:
    train_phase(phase, ImagePhase, RunFolder(folder.parent, folder.name), "x: 1\n")
    return str(folder)


def test_what_earlier_models_were_trained_on_counts(
    folds: PhaseOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained(folds(0), tmp_path / "first")
    assert "class centres" not in capsys.readouterr().out
    said = "4 of 4 classes not in training"
    leak = f"fold 1 of {tmp_path / 'folds.csv'}, which was trained on where fold 0 was held out"

    # Fold 1 from a model of fold 0, with as many classes: others, so the centres are new.
    second_config = folds(1, pretrain_model=first, margin={"imprint": True})
    phase = ImagePhase(second_config, Accelerator())
    assert not phase.head_continued
    words = f"class centres: new; the classes of {first} are others, or in another order"
    assert words in capsys.readouterr().out
    assert f"{said} (4 of them in that of {first})" in phase.describe("x")
    assert leak in phase.data.leak_words()
    same_fold = ImagePhase(folds(0, pretrain_model=first), Accelerator())
    assert same_fold.head_continued
    assert f"class centres: continued from {first}" in capsys.readouterr().out
    assert f"{said}," in same_fold.describe("x")
    assert "trained on where" not in same_fold.data.leak_words()

    # The same of a teacher, of a model further back, and of an average.
    teacher = ImagePhase(folds(1, distillation={"run": first}), Accelerator())
    assert leak in teacher.data.leak_words()
    second = str(shutil.copytree(first, tmp_path / "second"))
    description = tmp_path / "second" / "best" / "model.json"
    values = json.loads(description.read_text())
    description.write_text(json.dumps({**values, "data": phase.data.of_a_model()}))
    (tmp_path / "second" / "classes.json").write_text(json.dumps(OTHERS))
    third = ImagePhase(folds(1, pretrain_model=second), Accelerator())
    assert f"{said} (4 of them in that of {first})" in third.describe("x")
    assert leak in third.data.leak_words()
    data = averaged([Path(second), Path(first)])
    assert data is not None
    assert leak in data.leak_words()

    # An export knows its tables, not the names of its classes; older ones know nothing.
    export = shutil.copytree(tmp_path / "first" / "best", tmp_path / "weights")
    phase = ImagePhase(folds(1, pretrain_model=str(export)), Accelerator())
    assert leak in phase.data.leak_words()
    assert f"{said} (the classes of {export} are not known)" in phase.describe("x")
    description = export / "model.json"
    values = json.loads(description.read_text())
    description.write_text(json.dumps({**values, "data": None}))
    phase = ImagePhase(folds(1, pretrain_model=str(export)), Accelerator())
    assert f"whether {export} trained on images of the development" in phase.data.leak_words()

    # Weights of the teacher that changed are seen as those of the first model are.
    saved = identity_of(phase.images.images, [], [], [first])
    (tmp_path / "first" / "best" / "model.safetensors").write_bytes(b"others")
    now = identity_of(phase.images.images, [], [], [first])
    assert f"the weights of {first}: " in differences(saved, now)[0]
