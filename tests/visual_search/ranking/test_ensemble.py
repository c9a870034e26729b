"""Several runs as one export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from my_submission import to_torchscript
from my_submission.user_config import My_Ranker
from tests.commands import refused, stopped, told
from visual_search.common.files import write_json
from visual_search.config import BackboneConfig, EmbedSettings, NeckConfig
from visual_search.data.images import load_views
from visual_search.model.checkpoint import load_checkpoint, load_torchscript, save_checkpoint
from visual_search.model.embedder import Embedder, build_embedder
from visual_search.ranking.export import load_exported
from visual_search.ranking.fit import images_of
from visual_search.ranking.inference_plan import converted

CPU = torch.device("cpu")
VIEWS = ("squash", "letterbox")
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
        halves = [converted(eager(ensemble), kind, "channels_last")(PIXELS) for kind in HALVES]
        again = load_checkpoint(ensemble).embedder()(PIXELS)
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    cosines = 0.25 * one @ one.T + 0.75 * other @ other.T
    np.testing.assert_allclose(found @ found.T, cosines, atol=1e-5)
    torch.testing.assert_close(script, found, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again, found, atol=1e-5, rtol=1e-4)
    for half in halves:
        assert half.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(half, found).min() > 0.999


HALVES = ("bf16", "fp16")


def test_the_description_tells_of_the_members(runs: list[Path], ensemble: Path) -> None:
    described = json.loads((ensemble / "model.json").read_text())
    assert described["kind"] == "ensemble"
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
        return sum(np.hstack([0.5 * one, np.sqrt(0.75) * other]) for one, other in each) / 2

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    tables = ("gallery.csv", "queries.csv")
    gallery, queries = (unit(seen(table)) for table in tables)
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(ensemble))
    found = My_Ranker(str(dev_folder), *(str(dev_folder / table) for table in tables))
    found.settings = EmbedSettings(precision="fp32", views=VIEWS)
    expected = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")
    np.testing.assert_array_equal(found.predict_product_ranks()[:, : len(gallery)], expected)


def test_an_ensemble_is_exported_again_for_another_size_and_whitened(
    runs: list[Path], ensemble: Path, dev_folder: Path, tmp_path: Path
) -> None:
    tables = [dev_folder / "gallery.csv", dev_folder / "queries.csv"]
    larger = ("--input_size", 48, "--output", tmp_path)
    told(to_torchscript.main, ensemble, *larger, "--fit-on", *tables, "--dimension", 6)
    found = load_checkpoint(tmp_path)
    assert (found.architecture.dimension, found.facts["whitening"]["dimension"]) == (6, 6)
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    directly = tmp_path / "directly"
    told(to_torchscript.main, *runs, "--weights", 1, 3, "--input_size", 48, "--output", directly)
    model = eager(tmp_path)
    with torch.inference_mode():
        expected = model.neck(eager(directly)(pixels))
        cosines = torch.nn.functional.cosine_similarity(model(pixels), expected)
    torch.testing.assert_close(cosines, torch.ones(2), atol=1e-5, rtol=0)


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
    second = run(tmp_path / "b", **other)
    output = ("--output", tmp_path / "out")
    pytest.raises(AssertionError, match="x") if not words else None
    said = stopped(to_torchscript.main, runs[0], second, *options, *output)
    import re

    assert re.search(words, said), said
    assert not (tmp_path / "out").exists()
