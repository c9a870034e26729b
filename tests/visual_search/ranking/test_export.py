import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.commands import refused
from tests.kills import killed_at_each_change
from tests.submissions import my_ranker
from visual_search.common.errors import UserError
from visual_search.common.files import write_json
from visual_search.config import BackboneConfig, EmbedSettings
from visual_search.data.dev_sets import read_dev_set
from visual_search.evaluation.dev_set import embed_dev_set
from visual_search.model.checkpoint import (
    describe_model,
    fingerprint,
    load_checkpoint,
    load_torchscript,
)
from visual_search.model.embedder import Architecture, Embedder, build_embedder
from visual_search.ranking import export
from visual_search.ranking.export import (
    embedding_settings,
    export_torchscript,
    exported_runtime,
    load_exported,
    trained_embedder,
)

CPU = torch.device("cpu")


def tiny(seed: int = 0) -> tuple[Embedder, Architecture]:
    torch.manual_seed(seed)
    return build_embedder(BackboneConfig("timm/test_efficientnet", "none", std=(0.25,) * 3), 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Embedder, Architecture, Path]:
    """The export of run a; not to be changed."""
    embedder, architecture = tiny()
    path = export_torchscript(embedder, architecture, {"run": "a"}, tmp_path_factory.mktemp("a"))
    assert path.name == "model.pt"
    return embedder, architecture, path.parent


@pytest.fixture
def exported(made: tuple[Embedder, Architecture, Path], tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made[2], tmp_path / "export"))


def test_the_exported_model_answers_as_the_trained_one(
    made: tuple[Embedder, Architecture, Path],
) -> None:
    embedder, architecture, folder = made
    pixels = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        expected = embedder(pixels)
        torch.testing.assert_close(
            load_torchscript(folder / "model.pt")(pixels), expected, atol=1e-5, rtol=1e-4
        )
        model, found = load_exported(folder, CPU)
        torch.testing.assert_close(model(pixels), expected, atol=1e-5, rtol=1e-4)
    assert found == architecture
    assert isinstance(model, Embedder)
    description = json.loads((folder / "model.json").read_text())
    assert description["architecture"]["mean"] == [0.5] * 3
    assert description["architecture"]["input_size"] == 64


def test_without_the_backbone_library_the_torchscript_itself_answers(
    made: tuple[Embedder, Architecture, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, _, folder = made

    def not_installed(_: Architecture) -> Embedder:
        raise UserError("open_clip backbones need the package open_clip_torch")

    monkeypatch.setattr(export, "rebuild_embedder", not_installed)
    shouted: list[str] = []
    model, _ = load_exported(folder, CPU, shouted.append)
    assert isinstance(model, torch.jit.ScriptModule)
    (words,) = shouted
    assert "open_clip_torch), so the traced model.pt runs in its place" in words
    assert "requirements.txt has to bring timm" in words
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), embedder(pixels), atol=1e-5, rtol=1e-4)


def test_a_run_is_exported_for_a_larger_image(tmp_path: Path) -> None:
    """A ViT: timm resamples the position embedding of its own network for the new size."""
    torch.manual_seed(0)
    embedder, architecture = build_embedder(BackboneConfig("timm/test_vit", "none"), 32)
    export_torchscript(embedder, architecture, {"run": "a", "mAP": 0.5}, tmp_path)
    larger, found, facts = trained_embedder(load_checkpoint(tmp_path), 48)
    assert (found.input_size, facts["mAP"], facts["validated_at"]) == (48, None, 32)
    trunk: Any = embedder.backbone
    trunk.set_input_size((48, 48))
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(larger.eval()(pixels), embedder.eval()(pixels))
    _, found, facts = trained_embedder(load_checkpoint(tmp_path), 32)
    assert (found, facts["mAP"]) == (architecture, 0.5)
    refused("does not take images of 3 pixels", trained_embedder, load_checkpoint(tmp_path), 3)


@pytest.mark.parametrize("network", ["test_efficientnet", "test_vit_relpos"])
def test_ranker_and_evaluation_see_another_size_as_an_export_for_it(
    dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    """`view_sizes` belong to the model's own size; a ViT takes no other before it is resampled."""
    embedder, architecture = build_embedder(BackboneConfig(f"timm/{network}", "none"), 32)
    facts = {"embedding": {"views": ["squash", "letterbox"], "view_sizes": [32, 32]}}
    export_torchscript(embedder, architecture, facts, tmp_path / "own")
    export_torchscript(*trained_embedder(load_checkpoint(tmp_path / "own"), 64), tmp_path / "large")
    assert embedding_settings(tmp_path / "large").sides(64) == (64, 64)
    dev_set, vectors, ranks = read_dev_set(dev_folder), [], []
    for folder, size in ((tmp_path / "own", 64), (tmp_path / "large", 0), (tmp_path / "own", 0)):
        vectors.append(embed_dev_set(folder, dev_set, size, tmp_path / "cache").queries)
        monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(folder))
        monkeypatch.setenv("VISUAL_SEARCH_INPUT_SIZE", str(size or ""))
        ranks.append(my_ranker(dev_folder).predict_product_ranks().tolist())
    torch.testing.assert_close(vectors[0], vectors[1])
    assert ranks[0] == ranks[1]
    assert not torch.allclose(vectors[0], vectors[2], atol=1e-3)


def test_an_earlier_export_is_replaced(exported: Path) -> None:
    (exported / export.STAGED).mkdir()
    (exported / export.STAGED / "model.pt").touch()  # of one that was killed
    export_torchscript(*tiny(1), {"run": "b"}, exported)
    assert json.loads((exported / "model.json").read_text())["run"] == "b"
    names = {"model.pt", "model.safetensors", "model.json"}
    assert {path.name for path in exported.iterdir()} == names


def made_up(folder: Path, run: str, architecture: Architecture) -> Path:
    """An export whose weights say whose they are, as its description does."""
    folder.mkdir(exist_ok=True)
    for name in ("model.pt", "model.safetensors"):
        (folder / name).write_text(run)
    write_json(folder / "model.json", describe_model(architecture, {"run": run}))
    return folder


def runs_in(folder: Path) -> set[str]:
    """Whose export a finished one is, by each of its files; nothing of an unfinished one."""
    if not (folder / "model.json").is_file():
        return set()
    said = json.loads((folder / "model.json").read_text())["run"]
    return {said, *((folder / name).read_text() for name in ("model.pt", "model.safetensors"))}


def test_a_kill_at_any_moment_pairs_no_model_with_the_description_of_another(
    tmp_path: Path,
) -> None:
    _, architecture = tiny()
    folder, staged = made_up(tmp_path / "weights", "2", architecture), tmp_path / "new"

    def put_in_place() -> None:
        made_up(staged, "3", architecture)
        export._replace(folder, staged)

    for moments in killed_at_each_change(put_in_place):  # noqa: B007
        assert runs_in(folder) in (set(), {"2"}, {"3"})
    assert moments > 4
    assert runs_in(folder) == {"3"}


def test_an_export_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    class Moody(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :9] * torch.randn(9)

    _, architecture = tiny()
    embedder = Embedder(Moody(), nn.Identity(), (0.5,) * 3, (0.25,) * 3)
    refused("does not answer", export_torchscript, embedder, architecture, {}, tmp_path)
    assert not list(tmp_path.glob("*"))


def test_an_export_that_cannot_be_loaded_is_not_written(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}

    def broken(_: Architecture) -> Embedder:
        raise RuntimeError("required rank 4 tensor to use channels_last format")

    with monkeypatch.context() as patch:
        patch.setattr(export, "load_model", lambda *_: broken(_[0]))
        with pytest.raises(UserError, match=r"cannot be loaded again \(required rank 4"):
            export_torchscript(*tiny(2), {"run": "bad"}, exported)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_weights_of_five_dimensions_and_a_precision_that_fails_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in timm's lambda networks, of which `Module.to` makes no channels-last model."""
    embedder, architecture = tiny()
    embedder.register_parameter("volume", nn.Parameter(torch.ones(1, 1, 1, 1, 1)))
    rebuild = export.rebuild_embedder

    def rebuilt(found: Architecture) -> Embedder:
        model = rebuild(found)
        model.register_parameter("volume", nn.Parameter(torch.ones(1, 1, 1, 1, 1)))
        return model

    def converted(model: Embedder, precision: str, *rest: object) -> Embedder:
        if precision == "fp16":
            raise RuntimeError("no kernel")
        return model

    monkeypatch.setattr(export, "rebuild_embedder", rebuilt)
    monkeypatch.setattr(export, "converted", converted)
    export_torchscript(embedder, architecture, {}, tmp_path)
    assert "fp16 fails (no kernel): the ranker will take fp32" in capsys.readouterr().out


def test_a_script_of_a_stranger_is_not_run(exported: Path) -> None:
    """TorchScript can write files while it loads; where safetensors are there, it is not opened."""
    run, script = exported, exported / "model.pt"
    good = script.read_bytes()
    script.write_bytes(b"hostile")
    for source in (run, script, run / "model.safetensors"):
        assert load_checkpoint(source).path.name == "model.safetensors"
    assert fingerprint(run)
    (run / "model.safetensors").unlink()
    script.write_bytes(good)
    for source in (run, script):
        refused(rf"to_torchscript.py {run} --trust --output {run}", load_checkpoint, source)
        assert load_checkpoint(source, trust=True).path == script
    load_exported(run, CPU)  # the user's own, in the ranker


def test_what_is_missing_is_said(exported: Path, tmp_path: Path) -> None:
    refused(r"to_torchscript.py runs/<name>", load_exported, tmp_path, CPU)
    for name in ("model.pt", "model.safetensors"):
        load_exported(exported, CPU)  # one of them is enough
        (exported / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    refused("git lfs pull", load_exported, exported, CPU)


def test_a_pointer_in_place_of_the_onnx_network_is_told(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exported / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(UserError, match=r"backend is onnx.*model.onnx is a git-LFS pointer"):
        exported_runtime(exported, EmbedSettings(backend="onnx"), 64)
    # The model itself is there, and the ranker does without.
    assert exported_runtime(exported, EmbedSettings(), 64) is None
    assert "model.onnx is a git-LFS pointer" in capsys.readouterr().out
    load_exported(exported, CPU)


def test_an_export_of_an_earlier_version_is_loaded(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (exported / "model.safetensors").unlink()
    description = json.loads((exported / "model.json").read_text())
    assert description.pop("kind") == "image"
    description["embedding"] = {"backend": "openvino", "decoder": "nvjpeg", "flip": True}
    (exported / "model.json").write_text(json.dumps(description))
    (exported / "model.xml").write_text("<net/>")
    (exported / "model.bin").write_bytes(b"weights")
    settings = embedding_settings(exported)
    said = capsys.readouterr().out
    assert "model.json: backend openvino is no longer there, torch is used" in said
    assert "model.json: decoder nvjpeg is no longer there, cpu is used" in said
    assert settings.flip
    assert exported_runtime(exported, settings, 64) is None
    load_exported(exported, CPU)
    # A new export takes the old network away.
    export_torchscript(*tiny(), {"run": "a"}, exported)
    assert sorted(path.name for path in exported.iterdir()) == [
        "model.json",
        "model.pt",
        "model.safetensors",
    ]
