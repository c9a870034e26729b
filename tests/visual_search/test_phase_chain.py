"""The chain around a stand-in for the training command."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.commands import refused
from tests.conftest import PROJECT, write_yaml
from tests.kills import another_process, wait_for
from tests.warm import run_python
from visual_search import phase_chain
from visual_search.common.files import write_json
from visual_search.common.run_folder import flat_settings
from visual_search.main_phases import resolved
from visual_search.model.checkpoint import fingerprint
from visual_search.phase_chain import Chain, read_chain, run_chain

TWO: list[dict[str, Any]] = [
    {"name": "one", "config": "a.yml"},
    {"name": "two", "config": "b.yml", "overrides": {"optim": {"head_lr": 0.5}, "tags": [1, 2]}},
]


class Trainings(list[dict[str, str]]):
    """In place of the training command: the options of each call, and a finished run of it.

    Its "weights" are how many trainings there have been.
    """

    status = 0

    def __call__(self, words: Sequence[str]) -> int:
        assert words[:2] == ["-m", "visual_search.main_arcface"]
        options: dict[str, str] = {}
        given = iter(words[2:])
        for word in given:
            key, equals, value = word[2:].partition("=")
            options[key] = value if equals else next(given)
        self.append(options)
        run, before = Path(options["runs"], options["name"]), options.get("pretrain_model")
        place = ("runs", "name", "overwrite")
        write_json(run / "config.yml", {k: v for k, v in options.items() if k not in place})
        if not self.status:
            (run / "best").mkdir(exist_ok=True)
            (run / "best" / "model.json").touch()
            save_file({"x": torch.tensor(len(self))}, run / "best" / "model.safetensors")
            mark = fingerprint(Path(before)) if before else None
            facts = {"mAP": len(self) / 10, "epoch": 2, "step": 9, "seconds": 60.0}
            result = {"finished": True, "pretrain_fingerprint": mark, **facts}
            write_json(run / "result.json", result)
        return self.status

    def names(self) -> list[str]:
        return [options["name"] for options in self]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    trainings = Trainings()
    monkeypatch.setattr(phase_chain, "run_python", trainings)
    return trainings


def settings(arguments: Sequence[str]) -> str:
    """The stand-in's config: the command line as it is, and the file's name."""
    values = dict(argument[2:].split("=", 1) for argument in arguments[2:])
    return json.dumps({"config": arguments[1], **values})


def write_chain(place: Path, phases: list[dict[str, Any]]) -> Chain:
    for phase in phases:
        (place / str(phase["config"])).touch()
    return read_chain(write_yaml(place / "chain.yml", {"name": "all", "phases": phases}))


Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, trained: Trainings) -> Run:
    def call(phases: list[dict[str, Any]], **options: Any) -> str:
        chain = write_chain(tmp_path, phases)
        return run_chain(chain, tmp_path / "runs", settings, **options).read_text()

    return call


def test_each_phase_starts_from_the_one_before(
    tmp_path: Path, run: Run, trained: Trainings
) -> None:
    runs = tmp_path / "runs"
    explicit = {"name": "three", "config": "c.yml", "overrides": {"pretrain_model": f"{runs}/one"}}
    table = run([*TWO, explicit])
    place = {"runs": str(runs)}
    start = {"pretrain_model": f"{runs}/one", **place}
    assert trained == [
        {"config": f"{tmp_path}/a.yml", "name": "one", **place},
        {"config": f"{tmp_path}/b.yml", "name": "two", "optim.head_lr": "0.5", "tags": "[1, 2]"}
        | start,
        {"config": f"{tmp_path}/c.yml", "name": "three", **start},
    ]
    assert "| one | 0.1000 | 2 | 1.0 | trained |" in table
    assert "| two | 0.2000 | 2 | 1.0 | trained |" in table
    rows = json.loads((runs / "all" / "phases.json").read_text())["phases"]
    assert [row["mAP"] for row in rows] == [0.1, 0.2, 0.3]


def test_finished_and_unchanged_phases_are_skipped(run: Run, trained: Trainings) -> None:
    run(TWO)
    assert run(TWO).count("| kept |") == 2
    assert trained.names() == ["one", "two"]
    run(TWO, force=True, only=["two"])
    assert trained.names() == ["one", "two", "two"]
    assert trained[-1]["overwrite"] == "true"


def test_a_changed_phase_says_what_changed_and_waits_for_retrain(
    run: Run, trained: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    run(TWO)
    changed = [TWO[0], {**TWO[1], "overrides": {"optim.head_lr": 0.25}}]
    said = refused("Train it anew with --retrain", run, changed)
    assert "optim.head_lr: '0.5' -> '0.25'" in said
    assert "tags" in said
    assert trained.names() == ["one", "two"]
    run(changed, retrain=True)
    assert trained.names() == ["one", "two", "two"]
    assert "two: trains anew; changed: optim.head_lr: '0.5' -> '0.25'" in capsys.readouterr().out


def test_new_weights_of_the_phase_before_are_a_change(
    tmp_path: Path, run: Run, trained: Trainings
) -> None:
    run(TWO)
    before = fingerprint(tmp_path / "runs" / "one")
    run(TWO, only=["one"], force=True)
    now = fingerprint(tmp_path / "runs" / "one")
    refused(rf"pretrain_model .*one: {before[:12]} -> {now[:12]}", run, TWO)
    run(TWO, retrain=True)
    run(TWO)
    assert trained.names() == ["one", "two", "one", "two"]


def test_a_failed_phase_stops_the_chain_and_the_same_command_continues(
    run: Run, trained: Trainings
) -> None:
    trained.status = 7
    refused("the phase one ended with status 7", run, TWO)
    trained.status = 0
    run(TWO)
    assert trained.names() == ["one", "one", "two"]
    assert "overwrite" not in trained[1]  # it continues


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's prctl")
def test_a_killed_chain_leaves_no_training_behind(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, TWO)
    (tmp_path / "trainer.py").write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    launch = shlex.join([sys.executable, str(tmp_path / "trainer.py")])
    with another_process(lambda: run_chain(chain, tmp_path / "runs", settings, launch=launch)):
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    wait_for(lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_phase_may_use_a_gpu(tmp_path: Path) -> None:
    # CUDA refuses a process that was forked from one which had so much as counted the devices.
    (tmp_path / "phase.py").write_text("import torch; print('bad:', torch.cuda._is_in_bad_fork())")
    (tmp_path / "good.yml").write_text("train: {epochs: 1}\n")
    write_chain(tmp_path, [{"name": "one", "config": "good.yml"}])
    code = (
        "import sys\n"
        "from visual_search import main_phases, phase_chain as chain\n"
        "run = chain.run_python\n"
        f"chain.run_python = lambda words: run(['{tmp_path / 'phase.py'}'])\n"
        f"sys.argv[1:] = '--config {tmp_path / 'chain.yml'} --runs {tmp_path / 'runs'}'.split()\n"
        "main_phases.main()\n"
    )
    assert "bad: False" in run_python("-c", code).stdout


def test_wrong_settings_stop_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "good.yml").write_text("train: {epochs: 1}\n")
    (tmp_path / "bad.yml").write_text("train: {epoch: 1}\n")
    chain = write_chain(
        tmp_path, [{"name": "one", "config": "good.yml"}, {"name": "two", "config": "bad.yml"}]
    )
    asked = run_chain, chain, tmp_path / "runs", resolved
    refused(r"bad.yml: unknown key 'train.epoch'", *asked, launch="false")
    assert not (tmp_path / "runs").exists()
    refused("--only three: the chain's phases are one, two", *asked, only=["three"])
    good = write_chain(tmp_path, [{"name": "one", "config": "good.yml"}])
    asked = run_chain, good, tmp_path / "runs", resolved
    refused("there is no program 'no-such-program'", *asked, launch="no-such-program --cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("phases: []", "needs 'phases': a list"),
        ("[1, 2]", "must be a table of keys and values, not"),
        ("phases: 3", "phases must be a list of tables, not 3"),
        ("phases: [a]", "phases.0 must be a table of keys and values, not 'a'"),
        ("phases: [{name: a}]", "arguments are required: config"),
        ("phases: [{name: a, config: a.yml, x: 1}]", "unknown key 'phases.0.x'; known: name"),
        ("phases: [{name: a, config: no.yml}]", "there is no .*no.yml"),
        ("phases: [{name: a, config: a.yml, overrides: 3}]", "overrides.*expected dict"),
        ("{phases: [{name: a, config: a.yml}], extra: 1}", "unknown key 'extra'"),
        ("phases: [{name: a, config: a.yml}, {name: a, config: a.yml}]", "'a' is there twice"),
        ("{name: a, phases: [{name: a, config: a.yml}]}", "'a' is there twice"),
        ("{name: ../x, phases: [{name: a, config: a.yml}]}", "the name '../x' is no run's"),
        ("{phases: [{name: /a, config: a.yml}]}", "the name '/a' is no run's: use letters"),
    ],
)
def test_a_bad_chain_file_says_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yml").touch()
    path = tmp_path / "chain.yml"
    path.write_text(text)
    assert str(path) in refused(words, read_chain, path)


def test_overrides_are_what_a_phase_would_read_in_them(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(
        "{optim: {head_lr: 1e-2}, train: {precision: 'no'}, pretrain_model: 2026-11-30}"
    )
    (tmp_path / "b.yml").write_text("train: {precision: bf16}")
    overrides = "{optim: {head_lr: 1e-2}, train.precision: 'no', pretrain_model: 2026-11-30}"
    path = tmp_path / "chain.yml"
    path.write_text(f"phases: [{{name: b, config: b.yml, overrides: {overrides}}}]")
    [step] = read_chain(path).phases
    assert resolved(step.arguments(None)) == resolved(["--config", str(tmp_path / "a.yml")])


# Of the five phases; the review photos by their cosine.
RECIPE = {
    "dataset.input_size": (224, 256, 256, 256, 256),
    "dataset.batch_size": (48, 32, 32, 32, 32),
    "dataset.sampler.kind": ("shuffle", "shuffle", *["m-per-class"] * 3),
    "dataset.tables": ("", "", "06", "05", "05"),
    "optim.head_lr": (3e-4, 3e-4, 1e-4, 1e-5, 6e-6),
    "optim.warmup_steps": (4500, 4500, 1000, 1500, 1500),
    "train.epochs": (3, 5, 3, 3, 3),
    "train.accumulate": (1, 1, 1, 4, 4),
    "pairs.memory": (0, 0, 32000, 32000, 32000),
    "margin.weight": (1.0, 1.0, 0.0, 0.0, 0.0),
}
SHARED = {
    "backbone.name": "open_clip/convnext_xxlarge/laion2b_s34b_b82k_augreg_soup",
    "dataset.seed": 42,
    "dataset.num_of_classes": 9700,
    "dataset.train_on_test": False,
    "optim.name": "adamw",
    "optim.schedule": "cosine",
    "optim.backbone_lr_ratio": 0.01,
    "optim.weight_decay": 0.1,
    "optim.gradient_clip": 5.0,
    "train.precision": "bf16",
}
HEAD = {"margin.centers": 3, "margin.scale": 30.0, "margin.dropout": 0.2}


def test_the_five_phases_are_the_winning_recipe() -> None:
    chain = read_chain(PROJECT / "config" / "phases.yml")
    assert [step.name for step in chain.phases] == [
        *("arcface_1st", "arcface_2nd", "xbm_1st", "xbm_2nd", "xbm_3st")
    ]
    before = None
    for number, step in enumerate(chain.phases):
        alone = flat_settings(yaml.safe_load(resolved(["--config", str(step.config)])))
        assert alone["pretrain_model"] == before  # the five commands need no further option
        before = f"runs/{step.name}"
        tables = [table["file"] for table in alone["dataset.tables"]]
        alone["dataset.tables"] = "".join(re.findall(r"mean_(\d+)_full", "".join(tables)))
        wanted = SHARED | {key: values[number] for key, values in RECIPE.items()}
        wanted |= HEAD if wanted["margin.weight"] else {}
        assert {key: alone[key] for key in wanted} == wanted
