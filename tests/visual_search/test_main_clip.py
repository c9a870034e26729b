"""Image–text training as a user types it, small: drawn products, names made of two words."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.commands import alone, side_by_side
from tests.conftest import PROJECT
from tests.visual_search.drawn_pairs import (
    COLOURS,
    FORMS,
    HELD_OUT,
    small_clip,
    write_drawn_pairs,
)
from visual_search.common.errors import UserError
from visual_search.text.pairs import read_pairs
from visual_search.text.search import load_text_model

DIRECTIONS = ("text_to_photo", "photo_to_text")


def inside(name: str, *arguments: str) -> str:
    """The same in this process, which has loaded what it needs."""
    entry = importlib.import_module(f"visual_search.{name}")
    told = io.StringIO()
    torch.set_num_threads(1)  # the networks are too small for more
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.setattr(sys, "argv", [name, *arguments])
        entry.main()
    return told.getvalue()


def written(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run, its table, and a run on shuffled texts."""
    folder = tmp_path_factory.mktemp("typed")
    values = small_clip(write_drawn_pairs(folder / "data"))
    config = written(folder / "clip.yml", values)
    common = ("--config", str(config), "--runs", str(folder / "runs"))
    alone("visual_search.main_clip", *common, "--name", "right")
    inside("main_clip", *common, "--name", "shuffled", "--dataset.shuffle_texts", "true")
    return folder


def retrieval(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "retrieval"][-1]


def test_names_never_seen_are_found_and_shuffled_ones_are_not(trained: Path) -> None:
    right = retrieval(trained / "runs" / "right")
    shuffled = retrieval(trained / "runs" / "shuffled")
    # Nine products with two names each: chance is a ninth.
    assert right["text_to_photo"]["R@1"] >= 0.6
    assert right["photo_to_text"]["mAP"] >= 0.6
    assert shuffled["text_to_photo"]["R@1"] <= 0.35
    assert shuffled["photo_to_text"]["mAP"] <= 0.4


@pytest.mark.parametrize("shuffled", ["false", "true"])
def test_a_ridge_start_finds_names_unless_they_are_shuffled(trained: Path, shuffled: str) -> None:
    runs, name = trained / "starts", f"ridge_{shuffled}"
    options = ("--projection.initial", "ridge", "--dataset.shuffle_texts", shuffled)
    inside(
        "main_clip", "--config", str(trained / "clip.yml"), "--runs", str(runs), "--name", name,
        "--train.epochs", "1", "--train.validate_every", "1", "--optim.warmup_steps", "0",
        "--train.feature_cache", str(trained / "features"), *options,
    )  # fmt: skip
    lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
    start = next(line for line in lines if line["kind"] == "start")
    found = start["photo_to_text"]["mAP"]
    # Chance is 0.31; the visual tower is one of random weights.
    assert found <= 0.45 if shuffled == "true" else found >= 0.6


def test_a_ridge_start_needs_linear_projections(trained: Path) -> None:
    with pytest.raises(UserError, match=r"projection\.initial ridge needs projection\.kind linear"):
        inside(
            "main_clip", "--config", str(trained / "clip.yml"), "--runs", str(trained / "starts"),
            "--name", "none", "--projection.initial", "ridge", "--projection.kind", "residual",
        )  # fmt: skip


def test_a_run_is_a_folder_as_of_main_arcface(trained: Path) -> None:
    run = trained / "runs" / "right"
    expected = ["best", "classes.json", "config.yml", "last", "metrics.jsonl", "plots"]
    assert sorted(p.name for p in run.iterdir()) == [*expected, "report.html", "result.json"]
    page = (run / "report.html").read_text()
    assert "красный квадрат" in page
    assert "text → photo" in page


def test_queries_from_the_command_line(trained: Path) -> None:
    run, gallery = trained / "runs" / "right", trained / "data" / "pairs.parquet"
    output = trained / "found"
    told = inside(
        "main_query", "--run", str(run), "--gallery", str(gallery), "--top", "3", "--output",
        str(output), "--cache", str(trained / "cache"), "красный квадрат", "полоса зеленый",
    )  # fmt: skip
    assert "красный квадрат" in told
    rows = json.loads((output / "results.json").read_text())
    assert [len(row["photos"]) for row in rows] == [3, 3]
    assert rows[0]["photos"][0]["path"].split("/")[-1].startswith("0_")
    assert rows[1]["photos"][0]["path"].split("/")[-1].startswith("1_")
    assert (output / "results.jpg").stat().st_size > 1000
    names = written(trained / "names.txt", {})
    names.write_text("красный\nсиний\nжёлтый\n")
    photo = trained / "data" / "photos" / "2_0_1.png"
    told = inside(
        "main_query", "--run", str(run), "--photos", str(photo), "--names", str(names), "--top", "1"
    )
    assert ": синий" in told


def test_zero_shot_from_the_command_line(trained: Path) -> None:
    folder = trained / "forms"
    (folder / "img").mkdir(parents=True)
    labels = {}
    for path in sorted((trained / "data" / "photos").glob("*.png")):
        colour, form, _ = (int(part) for part in path.stem.split("_"))
        if (list(COLOURS)[colour], FORMS[form]) in HELD_OUT:
            (folder / "img" / path.name).write_bytes(path.read_bytes())
            labels[path.stem] = colour
    classes = list(COLOURS)
    (folder / "classes.json").write_text(json.dumps(classes))
    (folder / "labels.json").write_text(json.dumps(labels))
    run = trained / "runs" / "right"
    told = inside("main_zero_shot", "--run", str(run), "--data", str(folder))
    result = json.loads((run / "zero_shot" / "result.json").read_text())
    accuracy = result["data"]["forms"]["accuracy"]
    assert accuracy >= 0.7
    assert result["score"] == pytest.approx(100 * accuracy)
    predictions = json.loads((run / "zero_shot" / "predictions.json").read_text())["forms"]
    right = sum(predictions[name] == label for name, label in labels.items())
    assert right / len(labels) == pytest.approx(accuracy)
    assert (run / "zero_shot" / "confusion_forms.png").is_file()
    assert f"accuracy {accuracy:.3f}" in told
    shutil.rmtree(run / "zero_shot")


def test_the_next_stage_starts_from_the_one_before(trained: Path) -> None:
    run = trained / "runs" / "right"
    told = inside(
        "main_clip", "--config", str(trained / "clip.yml"), "--runs", str(trained / "runs"),
        "--name", "next", "--pretrain_model", str(run), "--optim.head_lr", "1e-9",
        "--train.epochs", "1", "--dataset.queries_per_photo", "mean", "--loss.chunk", "5",
    )  # fmt: skip
    before, after = retrieval(run), retrieval(trained / "runs" / "next")
    assert after["text_to_photo"]["mAP"] == pytest.approx(before["text_to_photo"]["mAP"], abs=0.05)
    assert "done: mAP" in told


VARIANTS: dict[str, dict[str, Any]] = {
    "infonce": {},
    "siglip": {"loss": {"name": "siglip", "temperature": 0.2}},
}


@pytest.mark.parametrize("variant", ["infonce", pytest.param("siglip", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_with_the_doubled_batch(variant: str, tmp_path: Path) -> None:
    values = small_clip(write_drawn_pairs(tmp_path / "data", photos=4))
    values["backbone"] = {"name": "timm/test_vit", "weights": "none"}
    values["dataset"] |= {"queries_per_photo": "mean" if variant == "siglip" else "draw"}
    values["train"] = {"epochs": 3, "validate_every": 3, "log_steps": 1}
    values |= VARIANTS[variant]
    config = written(tmp_path / "clip.yml", values)
    common = ("--config", str(config), "--runs", str(tmp_path / "runs"))
    inside("main_clip", *common, "--name", "one", "--dataset.batch_size", "12")
    two = ("--name", "two", "--dataset.batch_size", "6")
    side_by_side(2, "visual_search.main_clip", *common, *two)
    losses = []
    for name in ("one", "two"):
        text = (tmp_path / "runs" / name / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "step"])
    assert len(losses[0]) == 15
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        one, two = (
            load_text_model(tmp_path / "runs" / name / "last").encoder(pixels)
            for name in ("one", "two")
        )
    assert one.allclose(two, atol=2e-3)


@pytest.mark.slow
def test_a_killed_run_ends_as_one_left_alone(tmp_path: Path) -> None:
    values = small_clip(write_drawn_pairs(tmp_path / "data", photos=4))
    values["text"]["dropout"] = 0.2
    values["projection"] |= {"feature_noise": 0.1, "feature_dropout": 0.1}
    values["train"] = {"epochs": 4, "save_steps": 1, "log_steps": 1, "ema_decay": 0.9}
    config = written(tmp_path / "clip.yml", values)
    common = ["--config", str(config), "--runs", str(tmp_path / "runs")]
    alone("visual_search.main_clip", *common, "--name", "calm")
    rng, state = random.Random(0), tmp_path / "runs" / "killed" / "state"
    for _ in range(2):
        before = {path.name for path in state.glob("step-*")}
        process = subprocess.Popen(
            [sys.executable, "-m", "visual_search.main_clip", *common, "--name", "killed"],
            cwd=PROJECT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not {p.name for p in state.glob("step-*")} - before:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.wait()
    alone("visual_search.main_clip", *common, "--name", "killed")
    calm, killed = (
        load_file(tmp_path / "runs" / name / "last" / "model.safetensors")
        for name in ("calm", "killed")
    )
    assert calm.keys() == killed.keys()
    assert all(torch.equal(calm[name], killed[name]) for name in calm)


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> dict[str, Any]:
    """Both directions and the photos alone as tasks; the better run, beside the shuffled one."""
    pairs = trained / "data" / "pairs.parquet"
    folder = trained / "tasks"
    folder.mkdir()
    for direction in ("text-to-photo", "photo-to-text"):
        texts = {"pairs": str(pairs), "direction": direction}
        written(folder / f"{direction}.yml", {"texts": texts, "metric": "R@1"})
    with (folder / "table.csv").open("w") as table:
        table.write("image_path,label\n")
        for path in sorted((trained / "data" / "photos").glob("*.png")):
            table.write(f"{path},{path.stem.rsplit('_', 1)[0]}\n")
    photos = {"dev_set": {"table": str(folder / "table.csv")}, "rows": "all"}
    written(folder / "photos.yml", photos)
    tasks = [str(path) for path in sorted(folder.glob("*.yml"))]
    return {"tasks": tasks, "folder": folder}


def test_tasks_between_texts_and_photos(trained: Path, evaluated: dict[str, Any]) -> None:
    run, output = trained / "runs" / "right", evaluated["folder"] / "out"
    cache = ("--cache", str(trained / "cache"))
    tasks = ("--tasks", *evaluated["tasks"], "--output", str(output))
    inside("main_evaluate", "tasks", "--run", str(run), *tasks, *cache)
    results = json.loads((output / "results.json").read_text())
    assert results["dimension"] == 32
    found = results["tasks"]
    # What training recorded of the model that it kept.
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if line["kind"] == "retrieval"]
    best = max(scored, key=lambda line: sum(line[d]["mAP"] for d in DIRECTIONS))
    for name in DIRECTIONS:
        means = found[name.replace("_", "-")]["mean_over_queries"]
        for metric in ("R@1", "R@5", "R@10"):
            assert means[metric] == pytest.approx(best[name][metric])
        assert means["mAP@1000"] == pytest.approx(best[name]["mAP"])
        assert (output / f"{name.replace('_', '-')}_queries.jpg").stat().st_size > 1000
    assert found["text-to-photo"]["queries"] == 2 * len(HELD_OUT)
    assert found["text-to-photo"]["gallery"] == found["photo-to-text"]["queries"] == 54
    assert found["photos"]["queries"] == 144
    rows = (output / "scores" / "text-to-photo.csv").read_text().splitlines()
    assert any(row.startswith("красный квадрат,") for row in rows)


def test_two_runs_are_compared_on_texts(trained: Path, evaluated: dict[str, Any]) -> None:
    runs = [str(trained / "runs" / name) for name in ("right", "shuffled")]
    output = evaluated["folder"] / "compared"
    cache = ("--cache", str(trained / "cache"))
    tasks = ("--tasks", *evaluated["tasks"][-1:], "--output", str(output))
    inside("main_evaluate", "compare", *runs, *tasks, *cache)
    found = json.loads((output / "comparison.json").read_text())
    assert found["verdict"] == "A is better on 1 of 1 tasks"
    assert (output / "text-to-photo_changed.jpg").stat().st_size > 1000


def test_texts_are_not_asked_of_a_model_without_any(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    from tests.visual_search.evaluation.test_tasks import export

    silent = export(tmp_path / "silent", 0)
    output = tmp_path / "out"
    call = ("--tasks", *evaluated["tasks"], "--cache", str(tmp_path / "cache"))
    told = inside("main_evaluate", "tasks", "--run", str(silent), *call, "--output", str(output))
    assert "knows no texts: it takes a run of visual_search.main_clip" in told
    results = json.loads((output / "results.json").read_text())
    assert list(results["tasks"]) == ["photos"]
    assert sorted(results["skipped"]) == ["photo-to-text", "text-to-photo"]


def test_a_ridge_beside_runs(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from benchmarks import text_ridge

    runs = [str(trained / "runs" / name) for name in ("right", "shuffled")]
    monkeypatch.setattr(text_ridge, "CACHE", trained / "cache")
    monkeypatch.setattr(sys, "argv", ["text_ridge", "--no-record", "--runs", *runs])
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        text_ridge.main()
    assert "| right, text to photo |" in told.getvalue()
    assert "part 1, ridge: " in told.getvalue()


@pytest.mark.slow
def test_folds_ask_for_each_product_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from benchmarks import text_ridge

    folder = trained / "folded"
    folder.mkdir()
    values = yaml.safe_load((trained / "clip.yml").read_text())
    written(folder / "clip.yml", values | {"train": values["train"] | {"epochs": 1}})
    steps = [{"name": "one", "config": "clip.yml"}]
    chain = {"name": "small", "command": "main_clip", "phases": steps}
    written(folder / "chain.yml", chain)
    pairs = trained / "data" / "pairs.parquet"
    options = argparse.Namespace(
        runs=None, config=folder / "chain.yml", pairs=pairs, folds=2, folder=folder / "runs"
    )
    monkeypatch.setattr(text_ridge, "CACHE", trained / "cache")
    parts = text_ridge.judged_parts(options)
    assert [list(part.systems) for part in parts] == [["ridge", "one"]] * 2
    tests = [read_pairs(folder / "runs" / f"fold_{k}.parquet", "test") for k in (1, 2)]
    products = [{queries[0] for queries in table.queries} for table in tests]
    assert not products[0] & products[1]
    assert len(products[0] | products[1]) == 24
    assert all(path.is_file() for path in tests[0].paths)
