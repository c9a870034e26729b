"""Several runs as one export."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from my_submission import to_torchscript
from tests.commands import refused, stopped, told
from tests.submissions import my_ranker
from visual_search import main_export
from visual_search.common.files import write_json
from visual_search.common.model_config import Fit
from visual_search.config import BackboneConfig, EmbedSettings, NeckConfig
from visual_search.data.images import load_views
from visual_search.model.checkpoint import (
    load_checkpoint,
    load_torchscript,
    read_description,
    save_checkpoint,
)
from visual_search.model.embedder import Embedder, build_embedder, rebuild_embedder
from visual_search.ranking.export import load_exported, trained_embedder
from visual_search.ranking.fit import images_of, whiten
from visual_search.ranking.inference_plan import PRECISIONS, converted

CPU = torch.device("cpu")
VIEWS: tuple[Fit, ...] = ("squash", "letterbox")
PIXELS = torch.randint(
    0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def run(
    folder: Path,
    backbone: str = "timm/test_efficientnet",
    size: int = 32,
    neck: NeckConfig | None = None,
    **facts: Any,
) -> Path:
    """A run's folder with an untrained model in it."""
    torch.manual_seed(len(folder.name))
    config = BackboneConfig(backbone, "none", mean=(0.1 * len(folder.name),) * 3)
    embedder, architecture = build_embedder(config, size, neck)
    save_checkpoint(folder / "best", architecture, embedder.state_dict(), {}, facts)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two families, with other statistics of the pixels; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    vit = run(folder / "vit", "timm/test_vit", neck=NeckConfig("linear", 8), trained_on_test=True)
    return [run(folder / "a"), vit]


@pytest.fixture(scope="module")
def ensemble(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their export, the second with three quarters of the similarity; not to be changed."""
    output = tmp_path_factory.mktemp("weights")
    options = ("--weights", 1, 3, "--views", *VIEWS, "--output", output)
    said = told(to_torchscript.main, *runs, *options)
    assert "ensemble/timm/test_efficientnet + timm/test_vit, 32 px, " in said
    return output


def members(runs: list[Path], pixels: torch.Tensor) -> list[np.ndarray]:
    """The unit vectors of each by itself."""
    with torch.inference_mode():
        return [load_checkpoint(one).embedder()(pixels).double().numpy() for one in runs]


def eager(folder: Path) -> Embedder:
    model, _ = load_exported(folder, CPU)
    assert isinstance(model, Embedder)
    return model


def test_a_weight_is_a_share_of_the_similarity(runs: list[Path], ensemble: Path) -> None:
    one, other = members(runs, PIXELS)
    by_hand = np.concatenate([np.sqrt(0.25) * one, np.sqrt(0.75) * other], axis=1)
    with torch.inference_mode():
        found = eager(ensemble)(PIXELS)
        script = load_torchscript(ensemble / "model.pt")(PIXELS)
        fast = {kind: converted(eager(ensemble), kind, "channels_last") for kind in PRECISIONS}
        answers = {kind: embed(PIXELS) for kind, embed in fast.items()}
        again = load_checkpoint(ensemble).embedder()(PIXELS)
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    cosines = 0.25 * one @ one.T + 0.75 * other @ other.T
    np.testing.assert_allclose(found @ found.T, cosines, atol=1e-5)
    torch.testing.assert_close(script, found, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again, found, atol=1e-5, rtol=1e-4)
    for kind, answer in answers.items():
        assert answer.dtype == torch.float32, kind
        assert (answer * found).sum(dim=1).min() > (0.999 if kind != "fp32" else 0.99999), kind


def test_the_description_tells_of_the_members(runs: list[Path], ensemble: Path) -> None:
    described = json.loads((ensemble / "model.json").read_text())
    assert described["format"] == 2  # which earlier versions of the kit refuse in a sentence
    assert described["ensemble"] == {str(runs[0]): 1.0, str(runs[1]): 3.0}
    assert described["trained_on_test"]
    assert described["embedding"]["views"] == list(VIEWS)
    width = load_checkpoint(runs[0]).architecture.dimension + 8
    assert described["architecture"]["dimension"] == width
    assert load_checkpoint(ensemble).architecture.members[1].neck == "linear"


def test_the_ranker_answers_by_it(
    runs: list[Path], ensemble: Path, dev_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(table: str) -> np.ndarray:
        items = images_of(dev_folder / table, EmbedSettings())
        pixels = [load_views(item, [(view, 32) for view in VIEWS])[0] for item in items]
        of_views = [torch.from_numpy(np.stack(one)) for one in zip(*pixels, strict=True)]
        each = [members(runs, view) for view in of_views]
        joined = [np.hstack([0.5 * one, np.sqrt(0.75) * other]) for one, other in each]
        return np.mean(joined, axis=0)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    gallery, queries = (unit(seen(table)) for table in ("gallery.csv", "queries.csv"))
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(ensemble))
    found = my_ranker(dev_folder)
    found.settings = EmbedSettings(precision="fp32", views=VIEWS)
    expected = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")
    np.testing.assert_array_equal(found.predict_product_ranks()[:, : len(gallery)], expected)


def test_an_ensemble_is_resized_and_whitened_as_a_whole(
    runs: list[Path], ensemble: Path, dev_folder: Path
) -> None:
    """A ViT among the members: its position embedding is resampled as that of the run alone."""
    embedder, architecture, _ = trained_embedder(load_checkpoint(ensemble), 48)
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    tables = [dev_folder / "gallery.csv", dev_folder / "queries.csv"]
    architecture = whiten(embedder, architecture, EmbedSettings(), tables, 0.5, 6, 0.0)
    again = rebuild_embedder(architecture)
    again.load_state_dict(embedder.state_dict())
    with torch.inference_mode():
        one, other = (trained_embedder(load_checkpoint(run), 48)[0].eval()(pixels) for run in runs)
        whitened = embedder.neck(torch.cat([0.5 * one, 0.75**0.5 * other], dim=1))
        expected = torch.nn.functional.normalize(whitened, dim=1)
        assert expected.shape == (2, 6)
        torch.testing.assert_close(again.eval()(pixels), expected, atol=1e-4, rtol=1e-3)


def test_onnx_is_compared_on_images_that_are_named(ensemble: Path, tmp_path: Path) -> None:
    said = stopped(main_export.main, "--run", ensemble, "--output", tmp_path)
    assert "has no config.yml, which names images to compare on: name a table by --table" in said


@pytest.mark.slow
def test_an_ensemble_is_written_as_onnx(ensemble: Path, dev_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    table, few = ("--table", dev_folder / "gallery.csv"), ("--images", 4)
    only = ("--formats", "onnx-fp32")
    told(main_export.main, "--run", ensemble, *table, *few, *only, "--output", tmp_path)
    formats = json.loads((tmp_path / "formats.json").read_text())["formats"]
    assert formats[-1]["name"] == "onnx-fp32"
    assert formats[-1]["smallest_cosine"] > 0.9999


@pytest.mark.parametrize(
    ("other", "options", "words"),
    [
        ({"size": 64}, [], "b has input_size 64, .*a 32, and .* name one by --input_size"),
        ({"embedding": {"views": ["letterbox"]}}, [], r"views \('letterbox',\).* by --views"),
        ({"embedding": {"view_sizes": [16]}}, ["--rerank", "none"], "view_sizes.* by --views"),
        ({"embedding": {"flip": True}}, ["--views", "squash"], "alike into embedding.flip"),
        ({"rerank": [{"name": "center"}]}, [], "rerank .*center.* name the steps by --rerank"),
        ({}, ["--weights", "1"], "--weights has 1 numbers: write one for each model, 2 in all"),
        ({}, ["--weights", "1", "0"], "argument --weights: '0' is no number, above 0"),
        ({"text": {"dimension": 8}}, [], "is an image-text model"),
    ],
)
def test_members_that_do_not_go_together_are_refused(
    runs: list[Path], tmp_path: Path, other: dict[str, Any], options: list[str], words: str
) -> None:
    second, output = run(tmp_path / "b", **other), tmp_path / "out"
    said = stopped(to_torchscript.main, runs[0], second, *options, "--output", output)
    assert re.search(words, said), said
    assert not output.exists()


def test_an_ensemble_is_no_member_and_no_model_is_one_twice(
    runs: list[Path], ensemble: Path, tmp_path: Path
) -> None:
    output = ("--output", tmp_path / "out")
    said = stopped(to_torchscript.main, runs[0], ensemble, *output)
    assert f"{ensemble} is an ensemble itself: name its models in its place" in said
    assert "named twice" in stopped(to_torchscript.main, runs[0], runs[0], *output)
    damaged = run(tmp_path / "damaged")
    (damaged / "best" / "model.safetensors").write_bytes(b"nothing")
    said = stopped(to_torchscript.main, runs[0], damaged, *output)
    assert f"{damaged}/best/model.safetensors is not a readable weights file" in said


@pytest.mark.parametrize("kind", ["number", "numbers", "cut short", "many", "nested"])
def test_a_damaged_list_of_members_is_refused(ensemble: Path, tmp_path: Path, kind: str) -> None:
    described = json.loads((ensemble / "model.json").read_text())
    whole = described["architecture"]
    whole["settings"]["members"] = {
        "number": 3,
        "numbers": [3],
        "cut short": [{"backbone": "timm/test_vit"}],
        "many": whole["settings"]["members"] * 9,
        "nested": [json.loads(json.dumps(whole))],
    }[kind]
    write_json(tmp_path / "model.json", described)
    refused("model.json is not a model description", read_description, tmp_path / "model.json")
