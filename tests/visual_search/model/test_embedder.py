from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as tf

from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig, NeckConfig
from visual_search.model.checkpoint import load_torchscript
from visual_search.model.embedder import Architecture, build_embedder, rebuild_embedder
from visual_search.ranking.export import export_torchscript, load_exported

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_embeddings_are_unit_vectors_of_normalised_pixels() -> None:
    torch.manual_seed(0)
    embedder, architecture = build_embedder(BackboneConfig("timm/test_vit", "none", MEAN, STD), 160)
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.inference_mode():
        vectors = embedder.eval()(pixels)
        images = tf.normalize(pixels.float() / 255, list(MEAN), list(STD))
        expected = torch.nn.functional.normalize(embedder.backbone(images), dim=1)
    torch.testing.assert_close(vectors, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert architecture.dimension == vectors.shape[1] == 64


def test_neck_projects_and_is_rebuilt_with_the_rest() -> None:
    embedder, architecture = build_embedder(
        BackboneConfig("timm/test_vit", "none", MEAN, STD), 160, NeckConfig("linear-bn", 32)
    )
    again = rebuild_embedder(architecture)
    again.load_state_dict(embedder.state_dict())
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again.eval()(pixels), embedder.eval()(pixels))
        assert again(pixels).shape == (2, 32)


@pytest.mark.parametrize(
    ("backbone", "pooling", "overlap", "size"),
    [
        ("timm/test_vit", "gem", 4, 96),
        ("timm/test_vit", "cls", 0, 128),
        ("timm/test_efficientnet", "gem", 0, 96),
        pytest.param("open_clip/ViT-S-32", "avg", 8, 96, marks=pytest.mark.slow),
    ],
)
def test_every_choice_is_rebuilt_and_exported(
    backbone: str, pooling: Any, overlap: int, size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    embedder, architecture = build_embedder(
        BackboneConfig(
            backbone,
            "none",
            MEAN,
            STD,
            pooling=pooling,
            patch_overlap=overlap,
            gradient_checkpointing=True,
        ),
        size,
        NeckConfig("dropout-linear-bn", 24, dropout=0.5),
    )
    again = rebuild_embedder(architecture)
    again.load_state_dict(embedder.state_dict())
    export_torchscript(again, architecture, {"run": "a"}, tmp_path)
    exported, found = load_exported(tmp_path, torch.device("cpu"))
    assert found == architecture
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        expected = embedder.eval()(pixels)
        assert expected.shape == (2, 24)
        for model in (again.eval(), exported, load_torchscript(tmp_path / "model.pt")):
            torch.testing.assert_close(model(pixels), expected, atol=1e-5, rtol=1e-4)


def test_descriptions_from_before_a_choice_are_of_its_default() -> None:
    before = {
        "backbone": "timm/test_vit",
        "neck": "none",
        "dimension": 64,
        "input_size": 160,
        "mean": MEAN,
        "std": STD,
    }
    _, architecture = build_embedder(BackboneConfig("timm/test_vit", "none", MEAN, STD), 160)
    assert Architecture(**before) == architecture  # type: ignore[arg-type]


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="linear-bn"):
        build_embedder(
            BackboneConfig("timm/test_vit", "none", MEAN, STD), 160, NeckConfig("none", 32)
        )
    with pytest.raises(UserError, match="std above 0"):
        build_embedder(BackboneConfig("timm/test_vit", "none", MEAN, (1, 1, 0)), 160)
    unknown: Any = "conv"
    with pytest.raises(UserError, match="neck"):
        build_embedder(BackboneConfig("timm/test_vit", "none", MEAN, STD), 160, NeckConfig(unknown))
