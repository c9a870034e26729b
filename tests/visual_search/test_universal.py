"""The universal recipe's configs and commands, small."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.commands import logged, refused, stopped, told
from tests.conftest import PROJECT, draw_product, write_csv, write_yaml
from visual_search import main_compress, main_soup, main_tune
from visual_search.data.dev_sets import DevSet
from visual_search.data.images import ImageItem
from visual_search.evaluation.compression import RunEmbeddings, Sides, points_of
from visual_search.main_arcface import main as main_arcface
from visual_search.model.checkpoint import load_checkpoint, save_checkpoint
from visual_search.model.projections import Whitening
from visual_search.phase_chain import read_chain

Train = Callable[..., Path]


@pytest.fixture
def recipe(small_phase: dict[str, Any], tmp_path: Path) -> Path:
    """config/universal/lite0.yml on drawn products, with a tiny backbone."""
    values = yaml.safe_load((PROJECT / "config/universal/lite0.yml").read_text())
    values["dataset"] = small_phase["dataset"] | {"augmentations": "none"}
    values["backbone"] |= small_phase["backbone"]
    values["neck"]["dimension"], values["margin"]["nested"] = 8, [2, 4]
    values["train"] |= {"epochs": 1, "feature_cache": str(tmp_path / "features")}
    return write_yaml(tmp_path / "recipe.yml", values)


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains a config under a name; returns the run."""
    runs = tmp_path / "runs"

    def run(config: Path, name: str, *options: object) -> Path:
        told(main_arcface, "--config", config, "--name", name, "--runs", runs, *options)
        return runs / name

    return run


def result_of(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


@pytest.mark.parametrize(
    "kind", ["b32", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("l14", "h14"))]
)
def test_the_clip_chain_trains_a_step_of_every_phase(
    kind: str, small_phase: dict[str, Any], tmp_path: Path, train: Train
) -> None:
    """Weights cannot be had here: a small vision transformer at random stands in for CLIP's."""
    small, tables = small_phase["dataset"], []
    for number in range(2):  # four classes each, with a photo more than the limit
        names = {f"{number}_{n // 4}_{n % 4}.png": n // 4 for n in range(16)}
        for name, product in names.items():
            draw_product(50 + 10 * number + product, int(name[-5])).save(tmp_path / name)
        file = tmp_path / f"table{number}.csv"
        write_csv(file, ["file_name", "label"], names.items())
        tables.append({"file": str(file), "more_than": 3, "at_most": 3})
    before: Path | None = None
    for step in read_chain(PROJECT / f"config/universal/clip_vit_{kind}_phases.yml").phases:
        values = yaml.safe_load(step.config.read_text())
        own = values["dataset"]
        values["dataset"] = {
            **own,
            **small,
            "augmentations": own["augmentations"],
            "product10k": {**own["product10k"], **small["product10k"], "more_than": 3},
            "tables": tables,
            "input_size": 64 if step.name.endswith("overlap") else 32,
            "batch_size": 12,
        }
        values["backbone"] |= {"name": "timm/test_vit", "weights": "none"}
        if values["backbone"].get("patch_overlap"):
            values["backbone"]["patch_overlap"] = 8
        values["neck"]["dimension"], values["margin"]["nested"] = 8, [2, 4]
        # One process has one precision for good; other tests of it train in fp32.
        values["train"] |= {"epochs": 1, "accumulate": 1, "precision": "no"}
        values["train"]["feature_cache"] = str(tmp_path / "features")
        values["pretrain_model"] = before and str(before)
        before = train(write_yaml(tmp_path / f"{step.name}.yml", values), step.name)
        assert len(json.loads((before / "classes.json").read_text())) == 14
        assert load_checkpoint(before).architecture.dimension == 8


def test_a_grid_of_classes_against_widths(recipe: Path, tmp_path: Path) -> None:
    choices = {"dataset.max_classes": [3, 0], "neck.dimension": [4], "dataset.seed": [0]}
    search = tmp_path / "width.yml"
    write_yaml(search, {key: {"choices": values} for key, values in choices.items()})
    words = ("--config", recipe, "--name", "grid", "--runs", tmp_path, "--search", search)
    folder = tmp_path / "grid"
    for _ in range(2):  # the second time nothing is left
        told(main_tune.main, *words, "--grid", "true")
        scores = sorted(
            result_of(file.parent)["mAP"] for file in folder.glob("trials/*/result.json")
        )
        assert len(scores) == 2
    table = [line.split("|")[1:-1] for line in (folder / "grid.md").read_text().splitlines()]
    assert [cell.strip() for cell in table[0]] == ["dataset.max_classes", "neck.dimension 4"]
    assert [int(classes) for classes, _ in table[2:]] == [3, 6]
    assert sorted(float(mAP) for _, mAP in table[2:]) == pytest.approx(scores, abs=1e-4)
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")
    search.write_text("optim.head_lr: {low: 0.1, high: 0.2}\n")
    assert "--grid needs choices" in stopped(main_tune.main, *words, "--grid", "true")
    assert "--trials has no" in stopped(main_tune.main, *words, "--grid", "true", "--trials", 1)


@pytest.mark.slow
def test_umap_keeps_neighbours() -> None:
    pytest.importorskip("umap")
    torch.manual_seed(0)
    centers = F.normalize(torch.randn(10, 32), dim=1)
    labels = torch.arange(300) % 10
    made = F.normalize(centers[labels] + 0.1 * torch.randn(300, 32), dim=1)
    small = Sides(made, made[:60], made[60:90]).reduced(4, "umap")
    assert small.dimension == 4
    nearest = (small.queries @ small.gallery.T).argmax(dim=1)
    assert (labels[:60][nearest] == labels[60:90]).all()


def test_compressing_writes_the_curve_and_smaller_models(recipe: Path, train: Train) -> None:
    run = train(recipe, "u")
    command = ("--run", run, "--dimensions", 2, 4, 16)
    said = told(main_compress.main, *command, "--of-backbone", "--output", run / "compression")
    assert f"main_compress --run {run} --of-backbone --write 2" in said
    points = json.loads((run / "compression" / "compression.json").read_text())["points"]
    whole = next(p for p in points if (p["dimension"], p["coding"]) == (8, "float32"))
    assert whole["mAP"] == pytest.approx(result_of(run)["mAP"], abs=1e-6)
    assert {p["dimension"] for p in points if p["series"] == "u, prefixes"} == {2, 4, 8}
    assert {p["dimension"] for p in points if p["series"] == "its backbone alone, PCA"} > {2, 4, 16}
    assert (run / "compression" / "compression.png").read_bytes().startswith(b"\x89PNG")

    told(main_compress.main, *command, "--write", 4)
    told(main_compress.main, *command, "--write", 4, "--of-backbone", "--output", f"{run}_pca")
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        wide, cut, projected = (
            load_checkpoint(run.with_name(name)).embedder()(pixels)
            for name in ("u", "u_4", "u_pca")
        )
        torch.testing.assert_close(cut, F.normalize(wide[:, :4], dim=1))
    assert projected.shape == (5, 4)
    assert "exists already" in stopped(main_compress.main, *command, "--write", 4)
    refused("below the run's 8 dimensions", RunEmbeddings(run).write_smaller, 8, False, run / "x")


def test_points_count_bytes_and_score_as_a_plain_ranking() -> None:
    generator = torch.Generator().manual_seed(0)
    products = np.arange(60) % 12
    centres = torch.randn(12, 16, generator=generator)
    rows = centres[products] + 0.8 * torch.randn(60, 16, generator=generator)
    rows = F.normalize(rows, dim=1)
    items = [ImageItem(Path(str(row))) for row in range(60)]
    dev_set = DevSet(items, items[:20], products, products[:20], np.arange(20))
    sides = Sides(rows, rows, rows[:20])
    points = list(points_of("a", sides, [8, 16, 32], dev_set, "prefix"))
    found = {(p["dimension"], p["coding"]): p for p in points}
    assert {dimension for dimension, _ in found} == {8, 16}
    sizes = [found[16, coding]["bytes"] for coding in ("float32", "float16", "int8", "binary")]
    assert sizes == [64, 32, 16, 10]  # of the last a bit a dimension, and two numbers of a row
    short = F.normalize(rows[:, :8], dim=1)
    expected = []
    for query in range(20):
        order = [row for row in (-(short @ short[query])).argsort().tolist() if row != query]
        right = [products[row] == products[query] for row in order]
        hits = [sum(right[: k + 1]) / (k + 1) for k, hit in enumerate(right) if hit]
        expected.append(sum(hits) / len(hits))
    assert found[8, "float32"]["mAP"] == pytest.approx(np.mean(expected), abs=1e-6)
    for coding, far in (("float16", 0.01), ("int8", 0.05), ("binary", 0.4)):
        assert abs(found[16, coding]["mAP"] - found[16, "float32"]["mAP"]) < far


def test_a_soup_of_runs_is_a_run(recipe: Path, train: Train, tmp_path: Path) -> None:
    ranked = ("--rerank", '["swapped_dba"]', "--train.validate_reranked", "true")
    options = ("--optim.head_lr", 0.05, *ranked, "--dataset.seed")
    one, two = (train(recipe, f"s{seed}", *options, seed) for seed in (1, 2))

    def soup(name: str, *runs: Path) -> tuple[object, ...]:
        return ("--runs", *runs, "--name", name, "--folder", tmp_path, "--kind", name)

    for kind in ("uniform", "greedy"):
        told(main_soup.main, *soup(kind, one, two))
    states = [load_checkpoint(run).state for run in (one, two)]
    uniform = load_checkpoint(tmp_path / "uniform")
    for name, value in uniform.state.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    assert uniform.facts["rerank"] == load_checkpoint(one).facts["rerank"] != []
    result = result_of(tmp_path / "greedy")
    assert result["mAP"] >= max(result["scores"].values())
    assert result["scores"][str(one)] == pytest.approx(result_of(one)["mAP"], abs=1e-6)
    assert RunEmbeddings(tmp_path / "uniform").architecture == uniform.architecture
    assert "exists already" in stopped(main_soup.main, *soup("greedy", one, two))
    shutil.rmtree(tmp_path / "greedy")
    assert "two runs or more" in stopped(main_soup.main, *soup("greedy", one))
    narrow = train(recipe, "narrow", "--neck.dimension", 6)
    assert "has dimension 6" in stopped(main_soup.main, *soup("greedy", one, narrow))


def test_a_soup_of_whitened_runs_is_whitened_anew(
    small_phase: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    values = {**small_phase, "train": {"epochs": 1, "whitening": 0.5}}
    path = write_yaml(tmp_path / "phase.yml", values)
    runs = [train(path, name, "--dataset.seed", seed) for seed, name in enumerate("ab")]
    last = [load_checkpoint(run / "last") for run in runs]
    width = last[0].architecture.dimension
    for run, found in zip(runs, last, strict=True):
        neck = Whitening(width, 4)  # whether one helped in so short a training or not
        state = {**found.state, **neck.state_dict(prefix="neck.")}
        facts = {**found.facts, "mAP": None, "rerank": [{"name": "center"}]}
        save_checkpoint(run / "best", found.architecture.whitened(neck), state, {}, facts)
    words = ("--name", "soup", "--folder", tmp_path, "--kind", "uniform")
    said = told(main_soup.main, "--runs", *runs, *words)
    soup = load_checkpoint(tmp_path / "soup")
    scores = dict(re.findall(r"^the average( of all|, whitened): mAP ([\d.]+)", said, re.M))
    better = float(scores[", whitened"]) > float(scores[" of all"])
    assert soup.architecture.neck == ("whitening" if better else "none")
    assert soup.architecture.dimension == width
    assert soup.facts["rerank"] == [{"name": "center"}]
    assert soup.facts["mAP"] == pytest.approx(max(map(float, scores.values())), abs=1e-4)
    for name, value in last[0].state.items():
        if value.is_floating_point():
            torch.testing.assert_close(soup.state[name], (value + last[1].state[name]) / 2)


@pytest.mark.slow
def test_a_student_learns_what_a_run_sees(recipe: Path, train: Train) -> None:
    """The distillation config's loss falls: a narrower student comes to see alike what is alike."""
    values = yaml.safe_load(recipe.read_text())
    distil = yaml.safe_load((PROJECT / "config/universal/lite0_distil.yml").read_text())
    values["distillation"] = distil["distillation"] | {"run": str(train(recipe, "teacher"))}
    values["backbone"] |= {"trainable_blocks": -1}
    values["neck"] = {"kind": "norm-linear", "dimension": 6}
    values["margin"] = {"weight": 0.0}
    values["optim"] = {"head_lr": 0.01, "backbone_lr_ratio": 0.1, "warmup_steps": 0}
    values["train"] = {"epochs": 8, "log_steps": 1, "validate_every": 8}
    student = train(write_yaml(recipe.with_name("student.yml"), values), "student")
    losses = [line["loss"] for line in logged(student, "step")]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
