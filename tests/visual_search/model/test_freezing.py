from typing import Any

import pytest
import torch
from torch import nn

from tests.commands import refused
from visual_search.config import BackboneConfig
from visual_search.model.backbones import create_backbone
from visual_search.model.freezing import freeze_backbone, freeze_unused, hold_frozen, layer_depths
from visual_search.model.unicom import Unicom, UnicomSize

SIDES = {"unicom": 32, "open_clip/RN50": 64, "open_clip/ViT-S-32": 64, "timm/test_vit": 64}


def small(name: str, **more: Any) -> nn.Module:
    if name == "unicom":
        return Unicom(UnicomSize(32, 8, 12, 4, 3, 10))
    return create_backbone(BackboneConfig(name, "none", **more), SIDES.get(name, 0)).module


def freeze(module: nn.Module, name: str, **choices: Any) -> None:
    freeze_backbone(module, BackboneConfig(name, "none", **choices), SIDES.get(name, 160))


def trained(module: nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "timm/test_vit", "timm/test_convnext"])
def test_a_step_moves_the_later_stages_only(name: str) -> None:
    torch.manual_seed(0)
    backbone = small(name)
    freeze(backbone, name, frozen_stages=2)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone.train()
    hold_frozen(backbone, batchnorms=False)
    side = SIDES.get(name, 96)
    backbone(torch.randn(4, 3, side, side)).square().mean().backward()
    optimizer.step()
    moved = [not torch.equal(value, before[key]) for key, value in backbone.state_dict().items()]
    first = moved.index(True)
    assert first > 0
    # Parameters and running statistics of the first stages stand still.
    assert sum(moved[first:]) > 0.5 * len(moved[first:])


def test_batch_norms_can_be_held_while_their_scales_train() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    mean = model[1].running_mean
    assert isinstance(mean, torch.Tensor)
    hold_frozen(model, batchnorms=True)
    model(torch.randn(2, 3, 8, 8) + 5)
    assert mean.tolist() == [0.0] * 4
    assert model[1].weight.requires_grad


def test_faults_are_refused() -> None:
    name = "timm/test_efficientnet"
    backbone = small(name)
    refused("this backbone has", freeze, backbone, name, frozen_stages=99)
    refused(r"write 0\.\.5, or -1", freeze, backbone, name, trainable_blocks=99)
    unknown = "layers of this backbone are not known"
    refused(unknown, freeze, nn.Linear(2, 2), name, frozen_stages=1)


@pytest.mark.parametrize(
    ("name", "last", "blocks"),
    [
        ("timm/test_vit", ("blocks.4.", "blocks.5.", "norm."), 6),
        (
            "open_clip/ViT-S-32",
            ("transformer.resblocks.10.", "transformer.resblocks.11.", "ln_post", "proj"),
            12,
        ),
        ("open_clip/RN50", ("layer4.1.", "layer4.2.", "attnpool."), 16),
        ("unicom", ("blocks.2.", "blocks.3.", "norm.", "feature."), 4),
    ],
)
def test_the_last_blocks_and_the_rest_behind_them_are_trained(
    name: str, last: tuple[str, ...], blocks: int
) -> None:
    module = small(name)
    every = trained(module)
    freeze(module, name, trainable_blocks=-1)
    assert trained(module) == every
    freeze(module, name, trainable_blocks=blocks)
    left = every - trained(module)
    assert left
    assert not any("blocks." in key or "layer" in key for key in left)
    freeze(module, name, trainable_blocks=2)
    assert trained(module) == {key for key in every if key.startswith(last)}
    freeze(module, name, trainable_blocks=0)
    assert trained(module) == set()


@pytest.mark.parametrize(
    "name",
    [
        "timm/test_vit",
        "timm/test_efficientnet",
        "timm/test_convnext",
        "timm/mobilenetv3_small_050",
        pytest.param("timm/xcit_nano_12_p8_224", marks=pytest.mark.slow),
        "open_clip/ViT-S-32",
        pytest.param("open_clip/convnext_tiny", marks=pytest.mark.slow),
        "unicom",
    ],
)
def test_layers_deepen_along_the_network(name: str) -> None:
    """The order in which gradients arrive in the backward pass is the layers' reversed."""
    module = small(name).train()
    depths = layer_depths(module)
    assert depths.keys() == dict(module.named_parameters()).keys()
    assert set(depths.values()) == set(range(max(depths.values()) + 1))
    order: list[int] = []
    for key, value in module.named_parameters():

        def note(_: torch.Tensor, depth: int = depths[key]) -> None:
            if depth not in order:
                order.append(depth)

        value.register_hook(note)
    side = SIDES.get(name, 224)
    module(torch.randn(2, 3, side, side)).square().sum().backward()
    blocks = [depth for depth in order if depth > 0]  # the stem also adds positions
    assert blocks == sorted(blocks, reverse=True)


def test_layers_are_found_inside_wrappers() -> None:
    plain = layer_depths(small("timm/test_vit"))
    wrapped = layer_depths(small("timm/test_vit", pooling="gem"))
    assert {f"trunk.{name}": depth for name, depth in plain.items()}.items() <= wrapped.items()
    assert wrapped["pool.p"] == max(plain.values()) + 1


class HalfUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.left_out = nn.Conv2d(3, 4, 3), nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.used(images).mean(dim=(2, 3))


def test_what_has_no_part_in_the_features_is_frozen() -> None:
    module = HalfUsed()
    freeze_unused(module, 8)
    assert trained(module) == {"used.weight", "used.bias"}
    assert all(parameter.grad is None for parameter in module.parameters())
