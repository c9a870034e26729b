import json
from pathlib import Path

import pytest
import torch

from tests.commands import refused
from tests.kills import killed_at_each_change
from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig
from visual_search.model.checkpoint import (
    load_checkpoint,
    model_loader,
    read_description,
    save_checkpoint,
)
from visual_search.model.embedder import Architecture, Embedder, build_embedder
from visual_search.ranking.export import export_torchscript

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def trained() -> tuple[Embedder, Architecture]:
    torch.manual_seed(1)
    return build_embedder(BackboneConfig("timm/test_vit", "none", MEAN, STD), 160)


def saved(folder: Path, trained: tuple[Embedder, Architecture]) -> Path:
    embedder, architecture = trained
    head = {"weight": torch.ones(2, 3)}
    save_checkpoint(folder, architecture, embedder.state_dict(), head, {"run": "x", "mAP": 0.5})
    return folder


def test_every_way_to_name_a_model_finds_the_same_weights(
    tmp_path: Path, trained: tuple[Embedder, Architecture]
) -> None:
    run = tmp_path / "runs" / "x"
    best = saved(run / "best", trained)
    export = export_torchscript(*trained, {"run": "x", "mAP": 0.5}, tmp_path / "weights")
    for source in (run, best, best / "model.safetensors", export, export.parent):
        found = load_checkpoint(source)
        assert found.architecture == trained[1]
        assert found.facts["mAP"] == 0.5
        expected = trained[0].state_dict()
        assert found.state.keys() == expected.keys()
        assert all(torch.equal(found.state[key], expected[key]) for key in expected)


def test_best_comes_before_last(tmp_path: Path, trained: tuple[Embedder, Architecture]) -> None:
    saved(tmp_path / "last", trained)
    assert load_checkpoint(tmp_path).path.parent.name == "last"
    saved(tmp_path / "best", trained)
    assert load_checkpoint(tmp_path).path.parent.name == "best"


def test_a_checkpoint_killed_at_any_moment_is_the_old_one_the_new_one_or_none(
    tmp_path: Path, trained: tuple[Embedder, Architecture]
) -> None:
    def save(number: float) -> None:
        state = {"weight": torch.full((3,), number)}
        save_checkpoint(tmp_path / "best", trained[1], state, state, {"mAP": number})

    save(0.0)
    found = [0.0]
    for _ in killed_at_each_change(lambda: save(1.0)):
        try:
            checkpoint = load_checkpoint(tmp_path)
        except UserError:  # there is no finished one
            found.append(-1.0)
            continue
        assert checkpoint.state["weight"].tolist() == [checkpoint.facts["mAP"]] * 3
        found.append(checkpoint.facts["mAP"])
    assert found == sorted(found, key=[0.0, -1.0, 1.0].index)
    assert load_checkpoint(tmp_path).facts["mAP"] == 1.0


def test_damaged_files_are_named(tmp_path: Path, trained: tuple[Embedder, Architecture]) -> None:
    folder = saved(tmp_path / "best", trained)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(r"model.safetensors is not a readable", load_checkpoint, folder)
    weights.unlink()
    (folder / "model.pt").write_bytes(b"PK\x03\x04 nothing")
    refused(r"model.pt is not a readable TorchScript", load_checkpoint, folder, trust=True)
    refused("neither a run folder nor a model file", load_checkpoint, tmp_path / "none")


def test_descriptions_of_another_kind_are_refused(tmp_path: Path) -> None:
    for text, words in (
        ("{", "not a model description"),
        ("[]", "not a model description"),
        ('{"format": 1}', "not a model description"),
        (json.dumps({"format": 99, "architecture": {}}), "format 99"),
    ):
        (tmp_path / "model.json").write_text(text)
        refused(words, read_description, tmp_path / "model.json")


def test_the_kind_of_model_names_who_loads_it(
    tmp_path: Path, trained: tuple[Embedder, Architecture]
) -> None:
    embedder, architecture = trained
    for facts, kind in (({}, "image"), ({"text": {"dimension": 8}}, "image-text")):
        save_checkpoint(tmp_path, architecture, embedder.state_dict(), {}, facts)
        assert json.loads((tmp_path / "model.json").read_text())["kind"] == kind
        loader = model_loader(load_checkpoint(tmp_path))
        assert (loader is None) == (kind == "image")
        assert loader is None or callable(loader)
    save_checkpoint(tmp_path, architecture, embedder.state_dict(), {}, {"kind": "video"})
    with pytest.raises(UserError, match="of kind 'video'; this kit reads image, image-text"):
        model_loader(load_checkpoint(tmp_path))
