"""The chain around a stand-in for the training command, which is a real child process."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import refused
from tests.conftest import PROJECT, write_yaml
from tests.kills import another_process, wait_for
from tests.warm import run_python
from visual_search.main_phases import resolved
from visual_search.model.checkpoint import fingerprint
from visual_search.phase_chain import Chain, read_chain, run_chain

# Writes what a finished run leaves; its "weights" are how many trainings there have been.
STAND_IN = """
import hashlib, json, pathlib, struct, sys
here = pathlib.Path(__file__).parent
assert sys.argv[1:3] == ["-m", "visual_search.main_arcface"], sys.argv
arguments, options = sys.argv[3:], {}
while arguments:
    key, equals, value = arguments.pop(0)[2:].partition("=")
    options[key] = value if equals else arguments.pop(0)
with open(here / "log.txt", "a") as log:
    log.write(json.dumps(options) + "\\n")
count = len((here / "log.txt").read_text().splitlines())
run = pathlib.Path(options.pop("runs")) / options.pop("name")
options.pop("overwrite", None)
if pathlib.Path(here / "fail").exists():
    run.mkdir(parents=True)
    (run / "config.yml").write_text(json.dumps(options))
    sys.exit(7)
(run / "best").mkdir(parents=True, exist_ok=True)
header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
weights = struct.pack("<Q", len(header)) + header + struct.pack("<f", count)
(run / "best" / "model.safetensors").write_bytes(weights)
(run / "best" / "model.json").write_text((here / "model.json").read_text())
(run / "config.yml").write_text(json.dumps(options))
before, mark = options.get("pretrain_model"), None
if before:
    data = (pathlib.Path(before) / "best" / "model.safetensors").read_bytes()
    mark = hashlib.sha256(data).hexdigest()
facts = {"finished": True, "mAP": count / 10, "epoch": 2, "step": 9, "seconds": 60.0}
(run / "result.json").write_text(json.dumps({**facts, "pretrain_fingerprint": mark}))
"""


def settings(arguments: Sequence[str]) -> str:
    """The stand-in's config: the command line as it is, and the file's name."""
    values = {"config": arguments[1]}
    for argument in arguments[2:]:
        key, _, value = argument[2:].partition("=")
        values[key] = value
    return json.dumps(values)


@pytest.fixture
def place(tmp_path: Path, tiny_export: Path) -> Path:
    (tmp_path / "trainer.py").write_text(STAND_IN)
    shutil.copy(tiny_export / "model.json", tmp_path)
    return tmp_path


def write_chain(place: Path, phases: list[dict[str, Any]]) -> Chain:
    for phase in phases:
        (place / str(phase["config"])).touch()
    return read_chain(write_yaml(place / "chain.yml", {"name": "all", "phases": phases}))


TWO: list[dict[str, Any]] = [
    {"name": "one", "config": "a.yml"},
    {"name": "two", "config": "b.yml", "overrides": {"optim": {"head_lr": 0.5}, "tags": [1, 2]}},
]

Run = Callable[..., str]


@pytest.fixture
def run(place: Path) -> Run:
    def call(chain: Chain, **options: Any) -> str:
        launch = shlex.join([sys.executable, str(place / "trainer.py")])
        return run_chain(chain, place / "runs", settings, launch=launch, **options).read_text()

    return call


def trained(place: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (place / "log.txt").read_text().splitlines()]


def names(place: Path) -> list[str]:
    return [options["name"] for options in trained(place)]


def test_each_phase_starts_from_the_one_before(place: Path, run: Run) -> None:
    table = run(write_chain(place, TWO))
    one, two = trained(place)
    runs = place / "runs"
    assert one == {"config": str(place / "a.yml"), "name": "one", "runs": str(runs)}
    assert two.pop("optim.head_lr") == "0.5"
    assert two.pop("tags") == "[1, 2]"
    assert two == {
        "config": str(place / "b.yml"),
        "pretrain_model": str(runs / "one"),
        "name": "two",
        "runs": str(runs),
    }
    assert "| one | 0.1000 | 2 | 1.0 | trained |" in table
    assert "| two | 0.2000 | 2 | 1.0 | trained |" in table
    rows = json.loads((runs / "all" / "phases.json").read_text())["phases"]
    assert [row["mAP"] for row in rows] == [0.1, 0.2]


def test_finished_and_unchanged_phases_are_skipped(place: Path, run: Run) -> None:
    chain = write_chain(place, TWO)
    run(chain)
    table = run(chain)
    assert names(place) == ["one", "two"]
    assert table.count("| kept |") == 2
    run(chain, force=True, only=["two"])
    assert names(place) == ["one", "two", "two"]
    assert trained(place)[-1]["overwrite"] == "true"


def test_a_changed_phase_says_what_changed_and_waits_for_retrain(
    place: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run(write_chain(place, TWO))
    changed = write_chain(place, [TWO[0], {**TWO[1], "overrides": {"optim.head_lr": 0.25}}])
    said = refused("Train it anew with --retrain", run, changed)
    assert "optim.head_lr: '0.5' -> '0.25'" in said
    assert "tags" in said
    assert names(place) == ["one", "two"]
    capsys.readouterr()
    run(changed, retrain=True)
    assert names(place) == ["one", "two", "two"]
    assert "two: trains anew; changed: optim.head_lr: '0.5' -> '0.25'" in capsys.readouterr().out


def test_new_weights_of_the_phase_before_are_a_change(place: Path, run: Run) -> None:
    chain = write_chain(place, TWO)
    run(chain)
    before = fingerprint(place / "runs" / "one")
    run(chain, only=["one"], force=True)
    now = fingerprint(place / "runs" / "one")
    refused(rf"pretrain_model .*one: {before[:12]} -> {now[:12]}", run, chain)
    run(chain, retrain=True)
    assert names(place) == ["one", "two", "one", "two"]
    run(chain)
    assert len(names(place)) == 4


def test_a_failed_phase_stops_the_chain_and_the_same_command_continues(
    place: Path, run: Run
) -> None:
    chain = write_chain(place, TWO)
    (place / "fail").touch()
    refused("the phase one ended with status 7", run, chain)
    (place / "fail").unlink()
    run(chain)
    assert names(place) == ["one", "one", "two"]
    assert "overwrite" not in trained(place)[1]  # it continues


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's prctl")
def test_a_killed_chain_leaves_no_training_behind(place: Path) -> None:
    chain = write_chain(place, TWO)
    (place / "trainer.py").write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    launch = shlex.join([sys.executable, str(place / "trainer.py")])
    with another_process(lambda: run_chain(chain, place / "runs", settings, launch=launch)):
        wait_for(lambda: (place / "pid").exists() and (place / "pid").read_text())
    child = Path("/proc", (place / "pid").read_text(), "stat")
    wait_for(lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_phase_may_use_a_gpu(place: Path) -> None:
    # CUDA refuses a process that was forked from one which had so much as counted the devices.
    (place / "phase.py").write_text("import torch; print('bad:', torch.cuda._is_in_bad_fork())")
    (place / "good.yml").write_text("train: {epochs: 1}\n")
    write_chain(place, [{"name": "one", "config": "good.yml"}])
    code = (
        "import sys\n"
        "from visual_search import main_phases, phase_chain as chain\n"
        "run = chain.run_python\n"
        f"chain.run_python = lambda words: run(['{place / 'phase.py'}'])\n"
        f"sys.argv[1:] = '--config {place / 'chain.yml'} --runs {place / 'runs'}'.split()\n"
        "main_phases.main()\n"
    )
    assert "bad: False" in run_python("-c", code).stdout


def test_an_explicit_start_is_kept(place: Path, run: Run) -> None:
    phases = [TWO[0], {**TWO[1], "overrides": {"pretrain_model": str(place / "runs" / "one")}}]
    run(write_chain(place, phases))
    assert trained(place)[1]["pretrain_model"] == str(place / "runs" / "one")


def test_wrong_settings_stop_before_anything_is_trained(place: Path) -> None:
    (place / "good.yml").write_text("train: {epochs: 1}\n")
    (place / "bad.yml").write_text("train: {epoch: 1}\n")
    chain = write_chain(
        place, [{"name": "one", "config": "good.yml"}, {"name": "two", "config": "bad.yml"}]
    )
    asked = run_chain, chain, place / "runs", resolved
    refused(r"bad.yml: unknown key 'train.epoch'", *asked, launch="false")
    assert not (place / "runs").exists()
    refused("--only three: the chain's phases are one, two", *asked, only=["three"])
    good = write_chain(place, [{"name": "one", "config": "good.yml"}])
    asked = run_chain, good, place / "runs", resolved
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


# Pixels, batch, head rate, warm-up, epochs, accumulation, memory, cosine of the review photos.
RECIPE = {
    "arcface_1st": (224, 48, 3e-4, 4500, 3, 1, 0, ""),
    "arcface_2nd": (256, 32, 3e-4, 4500, 5, 1, 0, ""),
    "xbm_1st": (256, 32, 1e-4, 1000, 3, 1, 32000, "06"),
    "xbm_2nd": (256, 32, 1e-5, 1500, 3, 4, 32000, "05"),
    "xbm_3st": (256, 32, 6e-6, 1500, 3, 4, 32000, "05"),
}


def test_the_five_phases_are_the_winning_recipe() -> None:
    chain = read_chain(PROJECT / "config" / "phases.yml")
    assert [step.name for step in chain.phases] == list(RECIPE)
    before = None
    for step in chain.phases:
        alone = yaml.safe_load(resolved(["--config", str(step.config)]))
        assert alone["pretrain_model"] == before  # the five commands need no further option
        before = f"runs/{step.name}"
        data, optim, train = alone["dataset"], alone["optim"], alone["train"]
        tables = [table["file"] for table in data["tables"]]
        seen = (
            *(data["input_size"], data["batch_size"], optim["head_lr"], optim["warmup_steps"]),
            *(train["epochs"], train["accumulate"], alone["pairs"]["memory"]),
        )
        assert seen == RECIPE[step.name][:7]
        wanted = RECIPE[step.name][7]
        assert tables == (
            [f"dataset/amazon_review_mean_{wanted}_full_images.csv"] if wanted else []
        )
        assert (optim["backbone_lr_ratio"], optim["weight_decay"]) == (0.01, 0.1)
        assert (optim["name"], optim["schedule"]) == ("adamw", "cosine")
        assert (train["precision"], optim["gradient_clip"]) == ("bf16", 5.0)
        assert alone["backbone"]["name"].startswith("open_clip/convnext_xxlarge")
        assert (data["seed"], data["num_of_classes"], data["train_on_test"]) == (42, 9700, False)
        is_xbm = step.name.startswith("xbm")
        margin = alone["margin"]
        assert margin["weight"] == (0.0 if is_xbm else 1.0)
        assert is_xbm or (margin["centers"], margin["scale"], margin["dropout"]) == (3, 30.0, 0.2)
        assert data["sampler"]["kind"] == ("m-per-class" if is_xbm else "shuffle")
