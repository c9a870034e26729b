"""The training command as a user types it, small: a tiny timm model on drawn products."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.commands import inside, logged, stopped, told
from tests.conftest import PROJECT, write_yaml
from visual_search.data.dev_sets import read_dev_set
from visual_search.evaluation.dev_set import embed_dev_set
from visual_search.main_arcface import main
from visual_search.model.checkpoint import load_checkpoint
from visual_search.ranking.export import exported_steps
from visual_search.ranking.rerank import describe_steps


@pytest.fixture
def config(tmp_path: Path, small_phase: dict[str, Any]) -> Path:
    values = {
        **small_phase,
        "optim": {"head_lr": 0.01, "backbone_lr_ratio": 1.0, "warmup_steps": 4},
        "train": {"epochs": 2},
    }
    return write_yaml(tmp_path / "phase.yml", values)


def test_a_phase_from_the_command_line(config: Path, tmp_path: Path) -> None:
    common = ("--config", str(config), "--runs", str(tmp_path / "runs"))
    said = told(main, *common, "--name", "first")
    run = tmp_path / "runs" / "first"
    expected = ["best", "classes.json", "config.yml", "data.json", "environment.json", "last"]
    expected += ["metrics.jsonl", "plots", "report.html", "result.json"]
    assert sorted(path.name for path in run.iterdir()) == expected
    assert json.loads((run / "classes.json").read_text()) == list("012345")
    scores = [line["mAP"] for line in logged(run, "validation")]
    assert len(scores) == 2
    best = json.loads((run / "best" / "model.json").read_text())
    assert best["mAP"] == max(scores)
    kept = {
        name: json.loads((run / f"{name}.json").read_text()) for name in ("data", "environment")
    }
    assert best["data"] == {**kept["data"], "image_bytes": {}}
    assert best["environment"] == kept["environment"]
    assert f"Python {kept['environment']['python']}; torch" in (run / "report.html").read_text()
    assert f"mAP {max(scores):.4f}" in said
    assert "warning: nobody has looked yet" in said
    assert "nobody has looked yet" in (run / "report.html").read_text()
    assert str(run / "report.html") in said
    assert [line["step"] for line in logged(run, "epoch")] == [4, 8]
    saved = yaml.safe_load((run / "config.yml").read_text())
    assert saved["dataset"]["input_size"] == 32
    assert saved["margin"]["centers"] == 3

    # The same seed gives the same weights; a taken name is refused before anything is touched.
    told(main, *common, "--name", "again", "--dataset.num_workers", "2")
    one, two = (
        load_file(tmp_path / "runs" / name / "last" / "model.safetensors")
        for name in ("first", "again")
    )
    assert all((one[key] == two[key]).all() for key in one)
    assert "--overwrite true" in stopped(main, *common, "--name", "first")
    assert (run / "best" / "model.json").is_file()

    # Killed after its result, before its states were gone: the same command ends as it would have.
    (run / "state" / "step-8").mkdir(parents=True)
    stopped(main, *common, "--name", "first", "--train.epochs", "4")
    assert f"done: mAP {max(scores):.4f}" in told(main, *common, "--name", "first")
    assert not (run / "state").exists()
    assert inside(main, *common, "--name", "first").returncode == 2

    # The next phase starts from this one's best weights and class centres.
    second = told(
        main, *common, "--name", "second", "--pretrain_model", run, "--optim.head_lr", "0.0"
    )
    assert "class centres: continued from" in second
    before, after = load_checkpoint(run), load_checkpoint(tmp_path / "runs" / "second")
    for key, value in before.state.items():
        if "running_" not in key and "num_batches" not in key:
            assert (after.state[key] == value).all(), key


def test_training_learns(config: Path, tmp_path: Path) -> None:
    said = told(
        main,
        *("--config", config, "--runs", tmp_path / "runs", "--name", "x"),
        *("--train.epochs", "12", "--train.validate_every", "12", "--margin.dropout", "0"),
        *("--dataset.train_on_test", "true", "--train.whitening", "1"),
        *("--train.whitening_power", "0.5", "--train.whitening_dimension", "8"),
        *("--embedding.views", "[squash,letterbox]"),
    )
    run = tmp_path / "runs" / "x"
    losses = [line["loss"] for line in logged(run, "step")]
    assert losses[-1] < 0.7 * losses[0]
    assert "trains on Product10K's test images too" in said
    # The score of the whitened model, better or not, is the one that its file gives.
    tried = logged(run, "validation") + logged(run, "whitening")
    scores = [line["mAP"] for line in tried]
    assert len(scores) == 3
    best = load_checkpoint(run)
    assert best.facts["mAP"] == max(scores)
    assert best.architecture.neck == ("whitening" if max(scores) > scores[0] else "none")
    assert (best.architecture.dimension == 8) == (scores[2] > max(scores[:2]))
    assert "test images</dt><dd>True" in (run / "report.html").read_text()


def test_validation_ranks_as_the_submission_where_it_is_asked_to(
    config: Path, tmp_path: Path
) -> None:
    told(
        main,
        *("--config", config, "--runs", tmp_path / "runs", "--name", "x", "--train.epochs", "1"),
        *("--rerank", "swapped_dba", "--train.validate_reranked", "true"),
        *("--train.validate_share", "0.5"),
    )
    run = tmp_path / "runs" / "x"
    assert [line["step"] for line in logged(run, "validation")] == [2, 4]
    dev_set = read_dev_set(config.parent / "development_test_data")
    embedded = embed_dev_set(run, dev_set, 0, tmp_path / "cache")
    steps = exported_steps(run / "best")
    assert [step["name"] for step in describe_steps(steps)] == ["swapped_dba"]
    best = load_checkpoint(run).facts["mAP"]
    assert embedded.score(steps).mean() == pytest.approx(best, abs=1e-6)
    said = stopped(main, "--config", config, "--name", "y", "--rerank", "dbb")
    assert "rerank[0].name is 'dbb'; it can be" in said


def test_bad_input_is_one_sentence_and_touches_nothing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    common = ("--config", str(config), "--runs", str(tmp_path / "runs"), "--name", "x")
    for arguments, words in (
        (("--dataset.dev_set.eval_root", "nowhere"), "nowhere does not exist"),
        (("--dataset.product10k.train_list", "none.csv"), "none.csv does not exist"),
        (("--pretrain_model", "runs/none"), "runs/none"),
        (("--dataset.max_classes", "1"), "all training images are of one class"),
        (("--train.precision", "fp16"), "which needs a GPU"),
    ):
        assert words in stopped(main, *common, *arguments)
        assert not (tmp_path / "runs" / "x").exists()


def test_broken_photos_are_listed_and_many_of_them_stop_the_run(
    config: Path, product10k_folder: Path, tmp_path: Path
) -> None:
    photos = sorted((product10k_folder / "train").iterdir())
    photos[3].write_bytes(b"")
    common = ("--config", str(config), "--runs", str(tmp_path / "runs"))
    said = told(main, *common, "--name", "one", "--train.epochs", "1")
    listed = (tmp_path / "runs" / "one" / "broken_images.txt").read_text().split()
    assert listed == [str(photos[3])]
    assert "1 unreadable training images were replaced" in said
    for photo in photos[:12]:
        photo.write_bytes(b"")
    done = stopped(main, *common, "--name", "many", "--train.epochs", "1")
    assert "training images cannot be read" in done
    assert "dataset.max_broken_share" in done
