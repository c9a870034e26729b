from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from my_submission.user_config import My_Ranker
from visual_search.embed_settings import EmbedSettings
from visual_search.errors import UserError
from visual_search.export import compiled_export, export_torchscript, load_exported
from visual_search.model import Embedder, build_embedder
from visual_search.openvino_model import export_openvino, load_openvino

pytest.importorskip("openvino", reason="needs the extra [fast]")
SIZE = 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Embedder, Path]:
    torch.manual_seed(0)
    embedder, architecture = build_embedder(
        "timm/test_efficientnet", "none", SIZE, (0.5,) * 3, (0.25,) * 3
    )
    folder = tmp_path_factory.mktemp("export")
    export_torchscript(embedder, architecture, {"run": "a"}, folder)
    export_openvino(embedder, SIZE, folder)
    return embedder, folder


def test_it_answers_as_the_embedder_in_several_threads(exported: tuple[Embedder, Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    embedder, folder = exported
    answer = load_openvino(folder, streams=2, threads=1, exact=True)
    batches = [torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8) for n in (1, 5, 2, 5)]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(answer, [batch.to(memory_format=LAST) for batch in batches]))
    with torch.inference_mode():
        for batch, got in zip(batches, answers, strict=True):
            torch.testing.assert_close(got, embedder.eval()(batch), atol=1e-4, rtol=1e-3)


LAST = torch.channels_last


def test_the_ranker_uses_it_where_asked_and_ranks_alike(
    exported: tuple[Embedder, Path],
    dev_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(exported[1]))
    monkeypatch.setenv("VISUAL_SEARCH_RANKER_LOG", str(tmp_path / "log.json"))
    names = str(dev_folder), str(dev_folder / "gallery.csv"), str(dev_folder / "queries.csv")
    ranks = {}
    for backend in ("torch", "openvino"):
        monkeypatch.setenv("VISUAL_SEARCH_EMBEDDING", json.dumps({"backend": backend}))
        ranks[backend] = My_Ranker(*names).predict_product_ranks()
        assert json.loads((tmp_path / "log.json").read_text())["settings"]["backend"] == backend
    assert (ranks["torch"][:, :3] == ranks["openvino"][:, :3]).mean() > 0.9


def test_what_is_missing_is_said_only_where_it_is_asked_for(
    exported: tuple[Embedder, Path], tmp_path: Path
) -> None:
    _, folder = exported
    asked = EmbedSettings(backend="openvino")
    assert compiled_export(folder, asked, SIZE) is not None
    assert compiled_export(folder, EmbedSettings(), 64) is None
    with pytest.raises(UserError, match="exported for 32 px, not 64"):
        compiled_export(folder, asked, 64)
    _, architecture = load_exported(folder, torch.device("cpu"))
    # A new export leaves no network of the old weights behind.
    embedder, _ = build_embedder("timm/test_efficientnet", "none", SIZE, (0.5,) * 3, (0.25,) * 3)
    export_torchscript(embedder, architecture, {}, tmp_path)
    (tmp_path / "model.xml").write_text("old")
    export_torchscript(embedder, architecture, {}, tmp_path)
    assert compiled_export(tmp_path, EmbedSettings(), SIZE) is None
    with pytest.raises(UserError, match="--openvino"):
        compiled_export(tmp_path, asked, SIZE)


def test_a_damaged_file_is_told(exported: tuple[Embedder, Path], tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net")
    with pytest.raises(UserError, match=r"model\.xml cannot be used"):
        load_openvino(tmp_path, 1, 1)
