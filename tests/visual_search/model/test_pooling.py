from typing import Any

import pytest
import torch

from tests.commands import refused
from visual_search.config import BackboneConfig
from visual_search.model.backbones import Backbone, create_backbone
from visual_search.model.pooling import GeM, MapPooling


def test_gem_between_the_average_and_the_maximum() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 9, 4) + 0.01
    torch.testing.assert_close(GeM(p=1.0)(x), x.mean(dim=1))
    torch.testing.assert_close(GeM(p=80.0)(x), x.amax(dim=1), atol=0.06, rtol=0)
    by_hand = GeM(p=3.0)(torch.tensor([[[1.0], [2.0], [3.0]]])).item()
    assert by_hand == pytest.approx(((1 + 8 + 27) / 3) ** (1 / 3))


def test_gem_learns_its_exponent_and_bears_zeros_in_half_precision() -> None:
    gem = GeM()
    x = torch.tensor([[[0.0, -1.0, 1e-4], [0.0, 2.0, 1e-4]]], requires_grad=True)
    pooled = gem(x.half()).float()
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert gem.p.grad is not None
    assert gem.p.grad.abs().item() > 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_of_either_layout_are_pooled_alike(channels_last: bool) -> None:
    maps = torch.rand(2, 5, 3, 4)
    given = maps.permute(0, 2, 3, 1) if channels_last else maps
    pooled = MapPooling(GeM(p=1.0), channels_last, flatten=True)(given)
    torch.testing.assert_close(pooled, maps.mean(dim=(2, 3)))
    unflattened = MapPooling(GeM(p=1.0), channels_last, flatten=False)(given)
    assert unflattened.shape == ((2, 1, 1, 5) if channels_last else (2, 5, 1, 1))


def built(name: str, pooling: Any = "default") -> Backbone:
    """One random network, whatever the pooling."""
    torch.manual_seed(1)
    made = create_backbone(BackboneConfig(name, "none", pooling=pooling))
    made.module.eval()
    return made


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("timm/test_vit", "cls"),
        ("timm/test_vit_relpos", "avg"),
        ("timm/test_efficientnet", "avg"),
        ("timm/test_convnext", "avg"),
        ("timm/mobilenetv3_small_050", "avg"),
        pytest.param("timm/gmlp_ti16_224", "avg", marks=pytest.mark.slow),
        ("open_clip/ViT-S-32", "cls"),
    ],
)
@torch.no_grad()
def test_a_networks_own_pooling_by_its_name_changes_nothing(name: str, own: str) -> None:
    made = built(name)
    photos = torch.randn(2, 3, made.input_size, made.input_size)
    expected = made.module(photos)
    torch.testing.assert_close(built(name, own).module(photos), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(built(name, "gem").module(photos), expected, atol=1e-3)


@torch.no_grad()
def test_patches_are_pooled_without_the_class_token() -> None:
    photos, network = torch.randn(2, 3, 160, 160), built("timm/test_vit", "avg").module
    trunk: Any = network.trunk
    tokens = trunk.forward_features(photos)
    torch.testing.assert_close(network(photos), tokens[:, 1:].mean(dim=1))


def test_gem_takes_the_place_of_clips_attention_pooling() -> None:
    backbone = create_backbone(BackboneConfig("open_clip/RN50", "none", pooling="gem"), 64)
    assert backbone.dimension == 2048
    assert isinstance(backbone.module.attnpool, MapPooling)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("timm/test_efficientnet", "cls"),
        ("timm/gmlp_ti16_224", "cls"),
        ("open_clip/coca_ViT-B-32", "gem"),
        ("timm/crossvit_9_240", "gem"),
    ],
)
def test_a_pooling_that_cannot_be_is_refused(name: str, pooling: Any) -> None:
    config = BackboneConfig(name, "none", pooling=pooling)
    refused("set backbone.pooling to default", create_backbone, config)
