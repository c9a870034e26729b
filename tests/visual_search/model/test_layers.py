from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.commands import refused
from visual_search.config import BackboneConfig
from visual_search.model.backbones import create_backbone


@pytest.mark.parametrize(
    ("name", "blocks", "norm", "prefix"),
    [
        ("timm/test_efficientnet", "blocks", None, None),
        ("timm/test_vit", "blocks", "norm", 1),
        ("open_clip/ViT-S-32", "transformer.resblocks", "ln_post", 1),
    ],
)
def test_the_features_of_a_hooked_block_join_the_networks_own(
    name: str, blocks: str, norm: str | None, prefix: int | None
) -> None:
    torch.manual_seed(0)
    made = create_backbone(BackboneConfig(name, "none", layers=(1,), layer_weights=(0.5,)), 0)
    network: Any = made.module.eval().trunk
    images = torch.randn(2, 3, made.input_size, made.input_size)
    seen: list[torch.Tensor] = []
    hook = network.get_submodule(blocks)[-1].register_forward_hook(
        lambda _module, _given, output: seen.append(output)
    )
    with torch.no_grad():
        own = network(images)
        hook.remove()
        if prefix is None:
            mean = seen[0].mean(dim=(2, 3))
        else:
            mean = network.get_submodule(norm)(seen[0])[:, prefix:].mean(dim=1)
        expected = torch.cat([F.normalize(own, dim=1), 0.5 * F.normalize(mean, dim=1)], dim=1)
        torch.testing.assert_close(made.module(images), expected, atol=1e-5, rtol=1e-4)
    assert made.dimension == expected.shape[1]


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("timm/test_efficientnet", {"layers": (7,)}, r"does not give its layers \[7\]"),
        ("timm/test_efficientnet", {"layers": (1, 1)}, "each layer once"),
        ("timm/test_vit", {"layers": (1,), "pooling": "gem"}, "leave backbone.layers out"),
        ("timm/test_efficientnet", {"layer_weights": (1.0,)}, "1 numbers of 0 layers"),
    ],
)
def test_layers_that_cannot_be_had_are_refused(name: str, wrong: Any, words: str) -> None:
    refused(words, create_backbone, BackboneConfig(name, "none", **wrong), 0)
