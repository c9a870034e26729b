from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as tf
from torch import nn

from tests.commands import refused
from visual_search.config import BackboneConfig, NeckConfig
from visual_search.model.checkpoint import load_torchscript
from visual_search.model.embedder import (
    NECKS,
    Architecture,
    SkipInit,
    build_embedder,
    create_neck,
    rebuild_embedder,
)
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
    # Descriptions from before a choice are of its default.
    assert Architecture("timm/test_vit", "none", 64, 160, MEAN, STD) == architecture


@pytest.mark.parametrize(
    ("backbone", "size", "choices"),
    [
        ("timm/test_vit", 96, {"pooling": "gem", "patch_overlap": 4}),
        ("timm/test_vit", 128, {"pooling": "cls"}),
        ("timm/test_efficientnet", 96, {"pooling": "gem"}),
        ("timm/test_efficientnet", 32, {"layers": (1, 3), "layer_weights": (0.5, 2.0)}),
        pytest.param(
            *("open_clip/ViT-S-32", 96, {"pooling": "avg", "patch_overlap": 8}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_choice_is_rebuilt_and_exported(
    backbone: str, size: int, choices: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    checkpointed = "layers" not in choices
    embedder, architecture = build_embedder(
        BackboneConfig(backbone, "none", MEAN, STD, gradient_checkpointing=checkpointed, **choices),
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


@pytest.mark.parametrize("kind", list(NECKS))
@pytest.mark.parametrize("dimension", [0, 64])
def test_necks_give_the_dimension_that_is_asked_for(kind: str, dimension: int) -> None:
    if kind == "none" and dimension:
        refused("linear-bn for 64", create_neck, kind, 96, dimension)
        return
    neck = create_neck(kind, 96, dimension)
    assert neck(torch.randn(4, 96)).shape == (4, dimension or 96)


def test_dropout_acts_in_training_only() -> None:
    x, neck = torch.randn(4, 32), create_neck("dropout-linear-bn", 32, 8, dropout=0.5)
    assert not torch.equal(neck(x), neck(x))
    neck.eval()
    assert torch.equal(neck(x), neck(x))


def test_what_cannot_be_is_refused() -> None:
    refused("neck.kind is 'conv'", create_neck, "conv", 8)
    refused("neck.dimension is -1", create_neck, "linear", 8, -1)
    config = BackboneConfig("timm/test_vit", "none", MEAN, (1, 1, 0))
    refused("std above 0", build_embedder, config, 160)


def test_nothing_is_drawn_and_constants_are_set() -> None:
    before = torch.get_rng_state()
    with SkipInit():
        norm = nn.BatchNorm2d(5)
        nn.Linear(4, 4), nn.Conv2d(3, 4, 3), nn.Embedding(9, 2), nn.MultiheadAttention(8, 2)
        nn.init.trunc_normal_(torch.empty(3, 3))
        nn.init.orthogonal_(tensor=torch.empty(3, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert norm.weight.tolist() == norm.running_var.tolist() == [1.0] * 5  # type: ignore[union-attr]
    assert norm.bias.tolist() == [0.0] * 5
    drawn = nn.Linear(4, 4)
    assert not torch.equal(torch.get_rng_state(), before)
    assert drawn.weight.std() > 0
