"""Image–text training as a user types it, small: drawn products, names made of two words."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.commands import logged, refused, stopped, told
from tests.conftest import read_phase, spare_plots, write_yaml
from tests.visual_search.drawn_pairs import COLOURS, FORMS, HELD_OUT, small_clip, write_drawn_pairs
from visual_search import main_clip, main_evaluate, main_query, main_zero_shot
from visual_search.phase import ImagePhase
from visual_search.text.search import TextSearch, gallery_images, load_text_model
from visual_search.text.zero_shot import ZeroShotSet, classify, name_images

DIRECTIONS = ("text_to_photo", "photo_to_text")


def train(folder: Path, name: str, *options: object, runs: str = "runs") -> Path:
    """The folder of a run of `clip.yml`."""
    place = ("--config", folder / "clip.yml", "--runs", folder / runs, "--name", name)
    assert "done: mAP" in told(main_clip.main, *place, *options)
    return folder / runs / name


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        spare_plots(patch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run, its table, and a run of one epoch."""
    folder = tmp_path_factory.mktemp("clip")
    write_yaml(folder / "clip.yml", small_clip(write_drawn_pairs(folder / "data")))
    train(folder, "right")
    slow = ("--optim.head_lr", 1e-6, "--train.epochs", 1, "--train.validate_every", 1)
    train(folder, "unlearnt", *slow)
    return folder


def test_names_never_seen_are_found(trained: Path) -> None:
    right = logged(trained / "runs" / "right", "retrieval")[-1]
    # Nine products with two names each: chance is a ninth.
    assert right["text_to_photo"]["R@1"] >= 0.6
    assert right["photo_to_text"]["mAP"] >= 0.6


def test_a_ridge_start_finds_names(trained: Path) -> None:
    start = train(
        trained, "ridge", "--projection.initial", "ridge", "--train.epochs", 1,
        "--train.validate_every", 1, "--optim.warmup_steps", 0,
        "--train.feature_cache", trained / "features",
    )  # fmt: skip
    # Chance is 0.31; the visual tower is one of random weights.
    assert logged(start, "start")[0]["photo_to_text"]["mAP"] >= 0.6


def test_a_phase_of_images_starts_from_its_image_tower_and_learns_from_its_embeddings(
    trained: Path, small_phase: dict[str, Any], tmp_path: Path
) -> None:
    run = trained / "runs" / "right"
    small_phase["backbone"]["name"] = "timm/test_resnet"
    settings = {**small_phase, "pretrain_model": str(run), "distillation": {"run": str(run)}}
    config = read_phase(tmp_path / "phase.yml", settings)[0]
    learner = ImagePhase(config, Accelerator(cpu=True)).learner.eval()
    model = load_text_model(run)
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(learner.embedder(pixels), model.encoder.visual(pixels))
    torch.testing.assert_close(learner._teacher[0](pixels), model.embedder(pixels))


def test_a_run_is_a_folder_as_of_main_arcface(trained: Path) -> None:
    folder = trained / "runs" / "right"
    files = {"best", "classes.json", "config.yml", "data.json", "environment.json", "last", "plots"}
    assert {p.name for p in folder.iterdir()} >= files | {"report.html", "result.json"}
    page = (folder / "report.html").read_text()
    assert "красный квадрат" in page
    assert "text → photo" in page


def test_queries_from_the_command_line(trained: Path) -> None:
    gallery, output = trained / "data" / "pairs.parquet", trained / "found"
    query = (main_query.main, "--run", trained / "runs" / "right")
    said = told(
        *query, "--gallery", gallery, "--top", 3, "--output", output,
        "--cache", trained / "cache", "красный квадрат", "полоса зеленый",
    )  # fmt: skip
    assert "pairs.parquet: 54 images, 2 queries" in said
    assert "\nкрасный квадрат\n" in said
    rows = json.loads((output / "results.json").read_text())
    assert [len(row["photos"]) for row in rows] == [3, 3]
    assert rows[0]["photos"][0]["path"].split("/")[-1].startswith("0_")
    assert rows[1]["photos"][0]["path"].split("/")[-1].startswith("1_")
    assert (output / "results.html").stat().st_size > 1000
    names, image = trained / "names.txt", trained / "data" / "photos" / "2_0_1.png"
    names.write_text("красный\n\n синий \nжёлтый\n", encoding="utf-8-sig")
    said = told(*query, "--photos", image, "--names", names, "--top", 1)
    assert said.startswith("1 images, 3 names\n")
    assert ": синий" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gallery", "x"), "there is no query: type one in quotes"),
        (("стул",), "--gallery is missing"),
        (
            ("--gallery", "x", "--top", "0", "стул"),
            "argument --top: '0' is no whole number, 1 or more",
        ),
        (("--photos", "a.jpg"), "--photos needs --names"),
        (("--photos", "a.jpg", "--names", "b.txt"), "the image a.jpg does not exist"),
    ],
)
def test_what_a_query_lacks_is_said(options: tuple[str, ...], message: str) -> None:
    assert message in stopped(main_query.main, "--run", "runs/none", *options)


def test_a_model_of_nans_is_said_to_be_broken(trained: Path, tmp_path: Path) -> None:
    model = load_text_model(trained / "runs" / "right")
    torch.nn.init.constant_(next(model.encoder.neck.parameters()), torch.nan)
    images = gallery_images(trained / "data" / "pairs.parquet")[:6]
    data = ZeroShotSet("six", [["круг"], ["крест"]], [image.path for image in images], None)
    for ask in (
        lambda: TextSearch(model, images),
        lambda: TextSearch(model, images, tmp_path),
        lambda: name_images(model, images, ["круг"]),
        lambda: classify(model, data),
    ):
        refused(r"the model is broken: .* 6 of 6 images", ask)


def test_zero_shot_from_the_command_line(trained: Path) -> None:
    folder = trained / "forms"
    (folder / "img").mkdir(parents=True)
    labels = {}
    for path in sorted((trained / "data" / "photos").glob("*.png")):
        colour, form, _ = (int(part) for part in path.stem.split("_"))
        if (list(COLOURS)[colour], FORMS[form]) in HELD_OUT:
            (folder / "img" / path.name).write_bytes(path.read_bytes())
            labels[path.stem] = colour
    (folder / "classes.json").write_text(json.dumps(list(COLOURS)))
    (folder / "labels.json").write_text(json.dumps(labels))
    output = trained / "zero_shot"
    place = ("--run", trained / "runs" / "right", "--data", folder, "--output", output)
    said = told(main_zero_shot.main, *place)
    result = json.loads((output / "result.json").read_text())
    accuracy = result["data"]["forms"]["accuracy"]
    assert accuracy >= 0.7
    assert result["score"] == pytest.approx(100 * accuracy)
    predictions = json.loads((output / "predictions.json").read_text())["forms"]
    right = sum(predictions[name] == label for name, label in labels.items())
    assert right / len(labels) == pytest.approx(accuracy)
    assert (output / "confusion_forms.png").is_file()
    assert f"forms: 54 images (0 damaged), 6 classes: accuracy {accuracy:.3f}" in said


def test_the_next_stage_starts_from_the_one_before(trained: Path) -> None:
    before = trained / "runs" / "right"
    after = train(
        trained, "next", "--pretrain_model", before, "--optim.head_lr", "1e-9",
        "--train.epochs", 1, "--dataset.queries_per_photo", "mean", "--loss.chunk", 5,
    )  # fmt: skip
    scores = [logged(run, "retrieval")[-1]["text_to_photo"]["mAP"] for run in (before, after)]
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


@pytest.fixture(scope="module")
def tasks(trained: Path) -> list[Path]:
    """The images alone, and both directions, as tasks."""
    pairs, folder = trained / "data" / "pairs.parquet", trained / "tasks"
    folder.mkdir()
    for direction in ("text-to-photo", "photo-to-text"):
        texts = {"pairs": str(pairs), "direction": direction}
        write_yaml(folder / f"{direction}.yml", {"texts": texts, "metric": "R@1"})
    images = sorted((trained / "data" / "photos").glob("*.png"))
    rows = [f"{path},{path.stem.rsplit('_', 1)[0]}" for path in images]
    (folder / "table.csv").write_text("\n".join(["image_path,label", *rows]))
    alone = {"dev_set": {"table": str(folder / "table.csv")}, "rows": "all"}
    write_yaml(folder / "photos.yml", alone)
    return sorted(folder.glob("*.yml"))


def test_tasks_between_texts_and_images(trained: Path, tasks: list[Path], tmp_path: Path) -> None:
    right, shared = trained / "runs" / "right", ("--cache", trained / "cache")
    call = ("--run", right, "--tasks", *tasks, "--output", tmp_path, *shared)
    told(main_evaluate.main, "tasks", *call)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["dimension"] == 32
    found, page = results["tasks"], (tmp_path / "report.html").read_text()
    # What training recorded of the model that it kept.
    scored = logged(right, "retrieval")
    best = max(scored, key=lambda line: sum(line[d]["mAP"] for d in DIRECTIONS))
    for name in DIRECTIONS:
        means = found[name.replace("_", "-")]["mean_over_queries"]
        for metric in ("R@1", "R@5", "R@10"):
            assert means[metric] == pytest.approx(best[name][metric])
        assert means["mAP@1000"] == pytest.approx(best[name]["mAP"])
        assert f"{name.replace('_', '-')}: the worst queries" in page
    assert any(f"; * {colour} " in page for colour in COLOURS)  # a photo's right text, starred
    assert found["text-to-photo"]["queries"] == 2 * len(HELD_OUT)
    assert found["text-to-photo"]["gallery"] == found["photo-to-text"]["queries"] == 54
    assert found["photos"]["queries"] == 144
    rows = (tmp_path / "scores" / "text-to-photo.csv").read_text().splitlines()
    assert any(row.startswith("красный квадрат,") for row in rows)
    # The better run beside the one that hardly learns.
    runs = [trained / "runs" / name for name in ("right", "unlearnt")]
    output = tmp_path / "compared"
    call = (*runs, "--tasks", tasks[-1], "--output", output, *shared)
    told(main_evaluate.main, "compare", *call)
    compared = json.loads((output / "comparison.json").read_text())
    assert compared["verdict"] == "A is better on 1 of 1 tasks"
    page = (output / "comparison.html").read_text()
    assert page.count("<b>A: AP") == page.count("<b>B: AP") > 0
    assert 'aria-label="right: ' in page


def test_texts_are_not_asked_of_a_model_without_any(
    tasks: list[Path], tiny_export: Path, tmp_path: Path
) -> None:
    call = ("--tasks", *tasks, "--cache", tmp_path / "cache", "--output", tmp_path)
    said = told(main_evaluate.main, "tasks", "--run", tiny_export, *call)
    assert "knows no texts: it takes a run of visual_search.main_clip" in said
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["tasks"]) == ["photos"]
    assert sorted(results["skipped"]) == ["photo-to-text", "text-to-photo"]
