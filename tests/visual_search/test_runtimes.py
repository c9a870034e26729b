from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from my_submission.user_config import My_Ranker
from visual_search import main_export
from visual_search.embed_settings import EmbedSettings
from visual_search.errors import UserError
from visual_search.export import compiled_export, embedding_settings, export_torchscript
from visual_search.main_arcface import main as main_arcface
from visual_search.model import Embedder, build_embedder
from visual_search.onnx_model import export_onnx, load_onnx
from visual_search.openvino_model import OPENVINO_FILE
from visual_search.runtimes import (
    FORMATS,
    Measured,
    best_for_ranker,
    markdown,
    place_for_ranker,
)

SIZE = 32
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    torch.manual_seed(0)
    return build_embedder(
        "timm/test_efficientnet", "none", SIZE, (0.5,) * 3, (0.25,) * 3, "norm-linear", 8
    )[0].eval()


def photos(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def row(name: str, cosine: float, rate: float) -> Measured:
    return Measured(name, 1.0, cosine, cosine, rate)


def test_the_command_offers_what_there_is() -> None:
    assert tuple(FORMATS) == main_export.FORMATS


def test_the_ranker_gets_the_fastest_that_is_true_to_the_model() -> None:
    measured = [
        row("torch-fp32", 1.0, 10),
        row("openvino-fp32", 1.0, 20),
        row("openvino-fp16", 0.9999, 22),
        row("openvino-int8", 0.99, 40),
        row("onnx-int8", 0.7, 50),
        row("openvino-fp16 in fp32", 0.5, 99),
    ]
    assert best_for_ranker(measured, 0.9999) == "openvino-fp16"
    assert best_for_ranker(measured, 0.98) == "openvino-int8"
    assert best_for_ranker(measured, 0.6) == "onnx-int8"
    assert best_for_ranker(measured, 0.5) == "openvino-fp16"
    assert best_for_ranker(measured[:1], 0.5) is None
    assert "| openvino-fp32 | 1.0 | 1.00000 | 1.00000 | 20 | 2.00 x |" in markdown(measured)


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.9999), ("fp16", 0.999), ("int8", 0.95)]
)
def test_an_onnx_file_answers_as_the_embedder(
    embedder: Embedder, tmp_path: Path, precision: str, least: float
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", *(["nncf"] * (precision == "int8"))):
        pytest.importorskip(package, reason="needs the extra [export]")
    path = export_onnx(embedder, SIZE, tmp_path / "m.onnx", precision, photos(16))
    answer = load_onnx(path, streams=1, threads=1)
    for count in (1, 5):
        with torch.inference_mode():
            wanted = embedder(photos(count))
        got = answer(photos(count))
        assert got.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(got, wanted).min()) >= least
    path.write_bytes(b"no network")
    with pytest.raises(UserError, match=r"m\.onnx cannot be used"):
        load_onnx(path, 1, 1)


def test_the_command_leaves_the_ranker_a_network(
    small_phase: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="needs the extra [fast]")
    path = tmp_path / "phase.yml"
    path.write_text(yaml.safe_dump(small_phase | {"train": {"epochs": 1}}))
    run, output = tmp_path / "runs" / "a", tmp_path / "export"
    call = ["main_arcface", "--config", str(path), "--name", "a", "--runs", str(run.parent)]
    monkeypatch.setattr(sys, "argv", call)
    main_arcface()
    call = ["main_export", "--run", str(run), "--output", str(output), "--photos", "12"]
    call += ["--min_cosine", "0.9", "--formats", "openvino-fp32", "openvino-fp16"]
    monkeypatch.setattr(sys, "argv", call)
    main_export.main()
    told = json.loads((output / "formats.json").read_text())
    names = [entry["name"] for entry in told["formats"]]
    assert names[0] == "torch-fp32"
    plain = [name for name in names if name.startswith("openvino") and " in " not in name]
    assert plain == ["openvino-fp32", "openvino-fp16"]
    assert told["ranker"] in plain
    assert all(entry["smallest_cosine"] > 0.9 for entry in told["formats"])
    size = {entry["name"]: entry["megabytes"] for entry in told["formats"]}
    assert size["openvino-fp16"] < 0.75 * size["openvino-fp32"]
    assert embedding_settings(output).min_cosine == 0.9
    found = compiled_export(output, EmbedSettings(backend="openvino"), SIZE)
    assert found is not None
    assert found.load(1, 1, False)(photos(2)).shape[0] == 2


def test_a_network_that_is_too_coarse_is_taken_in_fp32(embedder: Embedder) -> None:
    from visual_search.probing import Compiled, prepare

    def exact_answer(pixels: torch.Tensor) -> torch.Tensor:
        return embedder(pixels)

    settings = EmbedSettings(precision="fp32", backend="openvino", batch_size=2, workers=1)
    prepared = prepare(
        embedder,
        photos(4),
        4,
        device=CPU,
        cores=1,
        settings=settings,
        compiled=Compiled(
            "openvino", lambda streams, threads, exact: exact_answer if exact else embedder.features
        ),
    )
    assert prepared.answer is exact_answer


def test_an_unfaithful_network_is_used_only_where_that_is_allowed(embedder: Embedder) -> None:
    from visual_search.probing import Compiled, prepare

    def turned(pixels: torch.Tensor) -> torch.Tensor:
        wrong = embedder(pixels) + 0.2 * torch.eye(8)[0]
        return torch.nn.functional.normalize(wrong, dim=1)

    answers = {}
    for least in (0.9999, 0.5):
        settings = EmbedSettings(
            precision="fp32", backend="openvino", min_cosine=least, batch_size=2, workers=1
        )
        prepared = prepare(
            embedder,
            photos(4),
            4,
            device=CPU,
            cores=1,
            settings=settings,
            compiled=Compiled("openvino", lambda streams, threads, exact: turned),
        )
        answers[least] = prepared.answer
    assert answers[0.5] is turned
    assert answers[0.9999] is not turned


def test_the_ranker_runs_an_onnx_network(
    embedder: Embedder, dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra [export]")
    architecture = build_embedder(
        "timm/test_efficientnet", "none", SIZE, (0.5,) * 3, (0.25,) * 3, "norm-linear", 8
    )[1]
    weights = tmp_path / "weights"
    export_torchscript(embedder, architecture, {}, weights)
    with pytest.raises(UserError, match=r"has no model\.onnx: export it with .*main_export"):
        compiled_export(weights, EmbedSettings(backend="onnx"), SIZE)
    (weights / OPENVINO_FILE).write_text("an earlier one")
    written = {"onnx-fp32": export_onnx(embedder, SIZE, tmp_path / "model_fp32.onnx")}
    place_for_ranker(written, "onnx-fp32", weights)
    assert sorted(path.name for path in weights.iterdir()) == [
        *("model.json", "model.onnx", "model.pt")
    ]
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(weights))
    monkeypatch.setenv("VISUAL_SEARCH_RANKER_LOG", str(tmp_path / "log.json"))
    names = str(dev_folder), str(dev_folder / "gallery.csv"), str(dev_folder / "queries.csv")
    ranks = {}
    for backend in ("torch", "onnx"):
        monkeypatch.setenv("VISUAL_SEARCH_EMBEDDING", json.dumps({"backend": backend}))
        ranks[backend] = My_Ranker(*names).predict_product_ranks()
        assert json.loads((tmp_path / "log.json").read_text())["settings"]["backend"] == backend
    assert (ranks["torch"][:, :3] == ranks["onnx"][:, :3]).mean() > 0.9
    # A damaged network that was asked for is said in the evaluator's channel.
    (weights / "model.onnx").write_bytes(b"no network")
    with pytest.raises(NameError, match=r"backend is onnx, which fails here .*model\.onnx"):
        My_Ranker(*names).predict_product_ranks()
    monkeypatch.setenv("VISUAL_SEARCH_EMBEDDING", "{}")
    assert My_Ranker(*names).predict_product_ranks().shape == (10, 1000)
