import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.commands import refused, told
from tests.submissions import my_ranker
from visual_search import main_export
from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig, EmbedSettings, NeckConfig
from visual_search.main_export import best_for_ranker
from visual_search.model.checkpoint import save_checkpoint
from visual_search.model.embedder import Architecture, Embedder, build_embedder
from visual_search.ranking import onnx as onnx_module
from visual_search.ranking.export import embedding_settings, export_torchscript, exported_runtime
from visual_search.ranking.onnx import Measured, export_onnx, load_onnx

SIZE = 32


def built() -> tuple[Embedder, Architecture]:
    torch.manual_seed(0)
    return build_embedder(
        BackboneConfig("timm/test_efficientnet", "none", std=(0.25,) * 3),
        SIZE,
        NeckConfig("norm-linear", 8),
    )


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return built()[0].eval()


@pytest.fixture(scope="module")
def network(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedder as ONNX, fp32; to be copied by who changes it."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra [export]")
    return export_onnx(embedder, SIZE, tmp_path_factory.mktemp("onnx") / "m.onnx")


def _copied(network: Path, model: Embedder, size: int, path: Path, precision: str) -> Path:
    return Path(shutil.copy(network, path))


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def row(name: str, cosine: float, rate: float) -> Measured:
    return Measured(name, 1.0, cosine, rate)


def test_the_ranker_gets_what_is_faster_than_pytorch_and_true_to_the_model() -> None:
    torch_rows = [row("torch-fp32", 1.0, 10), row("torch-bf16", 0.99, 15)]
    fp32, fp16 = row("onnx-fp32", 1.0, 20), row("onnx-fp16", 0.9990, 22)
    assert best_for_ranker([*torch_rows, fp32, fp16], 0.9999) == "onnx-fp32"
    assert best_for_ranker([*torch_rows, fp32, fp16], 0.99) == "onnx-fp16"
    assert best_for_ranker([*torch_rows, row("onnx-fp32", 1.0, 12)], 0.9999) is None


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.9999), pytest.param("fp16", 0.999, marks=pytest.mark.slow)]
)
def test_an_onnx_file_answers_as_the_embedder(
    network: Path, embedder: Embedder, tmp_path: Path, precision: str, least: float
) -> None:
    path = tmp_path / "m.onnx"
    if precision == "fp32":
        shutil.copy(network, path)
    else:
        export_onnx(embedder, SIZE, path, precision)
    answer = load_onnx(path, streams=1, threads=1)
    for count in (1, 5):
        with torch.inference_mode():
            wanted = embedder(images(count))
        got = answer(images(count))
        assert got.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(got, wanted).min()) >= least
    path.write_bytes(b"no network")
    refused(r"m\.onnx cannot be used", load_onnx, path, 1, 1)


@pytest.mark.parametrize(
    ("rate", "expected", "written"),
    [
        (1e9, "onnx-fp32", "by another"),
        (0.0, None, "by another"),
        pytest.param(1e9, "onnx-fp32", "by the command", marks=pytest.mark.slow),
    ],
)
def test_the_command_leaves_the_ranker_a_network_that_is_faster(
    network: Path,
    small_phase: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    expected: str | None,
    written: str,
) -> None:
    run, output = tmp_path / "run", tmp_path / "export"
    embedder, architecture = built()
    save_checkpoint(run / "best", architecture, embedder.state_dict(), {}, {"run": "run"})
    (run / "config.yml").write_text(yaml.safe_dump(small_phase))
    measure = onnx_module.measure

    def measured(name: str, *given: Any, **named: Any) -> Measured:
        found = measure(name, *given, **named)
        return replace(found, images_per_second=rate) if name == "onnx-fp32" else found

    monkeypatch.setattr(onnx_module, "measure", measured)
    if written == "by another":
        monkeypatch.setattr(onnx_module, "export_onnx", partial(_copied, network))
    call = ["--run", run, "--output", output, "--photos", 12, "--min_cosine", 0.9]
    told(main_export.main, *call, "--formats", "onnx-fp32")
    formats = json.loads((output / "formats.json").read_text())
    names = [entry["name"] for entry in formats["formats"]]
    assert (names[0], names[-1], formats["ranker"]) == ("torch-fp32", "onnx-fp32", expected)
    assert all(entry["smallest_cosine"] > 0.9 for entry in formats["formats"])
    assert embedding_settings(output).min_cosine == 0.9
    found = exported_runtime(output, EmbedSettings(), SIZE)
    assert (found is not None) == (expected is not None)
    if found is not None:
        assert found(1, 1)(images(2)).shape[0] == 2
    assert "| onnx-fp32 | " in (output / "formats.md").read_text()


def test_the_ranker_runs_an_onnx_network(
    network: Path,
    embedder: Embedder,
    dev_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tmp_path / "weights"
    export_torchscript(embedder, built()[1], {}, weights)
    with pytest.raises(UserError, match=r"has no model\.onnx: export it with .*main_export"):
        exported_runtime(weights, EmbedSettings(backend="onnx"), SIZE)
    shutil.copy(network, weights / "model.onnx")
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(weights))
    monkeypatch.setenv("VISUAL_SEARCH_RANKER_LOG", str(tmp_path / "log.json"))
    ranks = {}
    for backend in ("torch", "onnx"):
        monkeypatch.setenv("VISUAL_SEARCH_EMBEDDING", json.dumps({"backend": backend}))
        ranks[backend] = my_ranker(dev_folder).predict_product_ranks()
        assert json.loads((tmp_path / "log.json").read_text())["settings"]["backend"] == backend
    assert (ranks["torch"][:, :3] == ranks["onnx"][:, :3]).mean() > 0.9
    # A damaged network that was asked for is said in the evaluator's channel.
    (weights / "model.onnx").write_bytes(b"no network")
    with pytest.raises(NameError, match=r"backend is onnx, which fails here .*model\.onnx"):
        my_ranker(dev_folder).predict_product_ranks()
    monkeypatch.setenv("VISUAL_SEARCH_EMBEDDING", "{}")
    assert my_ranker(dev_folder).predict_product_ranks().shape == (10, 1000)
