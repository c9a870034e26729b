from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.commands import refused
from visual_search.config import BackboneConfig
from visual_search.model.backbones import checkpoint_gradients, create_backbone, feature_width

TINY = "timm/test_efficientnet"

# One of each kind: convolutions, tokens, windows, hybrids; heads with hidden layers or two
# outputs; distilled, attention-pooled and relative-position transformers; CLIP's own towers.
FEW = [
    ("timm/test_efficientnet", 256),
    ("timm/test_vit", 64),
    ("timm/test_vit_relpos", 96),
    ("timm/test_convnext", 64),
    ("timm/test_maxvit", 128),
    ("timm/test_nfnet", 192),
    ("timm/mobilenetv3_small_050", 1024),
    ("timm/lcnet_050", 1280),
    ("timm/efficientvit_b0", 1280),
    ("timm/levit_128s", 384),
    ("timm/vit_tiny_r_s16_p8_224", 192),
    ("open_clip/ViT-S-32", 384),
]
MANY = """
timm/beit_base_patch16_224=768 timm/cait_xxs24_224=192 timm/coat_tiny=152 timm/convit_tiny=192
timm/convmixer_768_32=768 timm/convnextv2_atto=320 timm/cs3darknet_s=512 timm/davit_tiny=768
timm/deit3_small_patch16_224=384 timm/densenet121=1024 timm/dla34=512 timm/dpn68=832
timm/edgenext_small=304 timm/efficientformer_l1=448 timm/efficientformerv2_s0=176
timm/efficientvit_m0=192 timm/eva02_tiny_patch14_224=192 timm/fastvit_t8=768
timm/focalnet_tiny_lrf=768 timm/gernet_s=1920 timm/ghostnet_050=1280 timm/gmlp_ti16_224=128
timm/hardcorenas_a=1280 timm/hgnet_tiny=2048 timm/hrnet_w18_small=2048
timm/inception_next_atto=960 timm/inception_v3=2048 timm/mambaout_femto=1152
timm/mobilevit_xxs=320 timm/mobilenetv4_conv_small_050=1280 timm/mvitv2_tiny=768
timm/nest_tiny=384 timm/pit_ti_224=256 timm/poolformer_s12=512 timm/pvt_v2_b0=256
timm/regnety_002=368 timm/repvit_m0_9=384 timm/res2net50d=2048 timm/resnest14d=2048
timm/resnetv2_18=512 timm/rexnet_100=1280 timm/selecsls42=1280 timm/skresnet18=512
timm/swin_s3_tiny_224=768 timm/swinv2_tiny_window8_256=768 timm/tiny_vit_5m_224=320
timm/twins_svt_small=512 timm/vgg11=4096 timm/visformer_tiny=384 timm/vit_small_r26_s32_224=384
timm/xcit_nano_12_p8_224=128 open_clip/RN50=1024 open_clip/ViT-M-32-alt=384
open_clip/ViT-B-32-SigLIP2-256=768 open_clip/coca_ViT-B-32=512 open_clip/convnext_tiny=1024
open_clip/swin_base_patch4_window7_224=640 open_clip/PE-Core-T-16-384=512
open_clip/MobileCLIP-S1=512 open_clip/EVA02-B-16=512 timm/resnet18=512
timm/deit_tiny_distilled_patch16_224=192
"""


def check_a_training_step(name: str, dimension: int) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneConfig(name, "none"))
    module = backbone.module.train()
    photos = torch.randn(2, 3, backbone.input_size, backbone.input_size)
    features = module(photos)
    assert features.shape == (2, dimension)
    assert backbone.dimension == dimension
    classifier = torch.randn(dimension, 5)
    loss = F.cross_entropy(features @ classifier, torch.tensor([0, 3]))
    loss.backward()
    assert torch.isfinite(loss)
    parameters = dict(module.named_parameters())
    assert [key for key, value in parameters.items() if value.grad is None] == []
    before = {key: value.detach().clone() for key, value in parameters.items()}
    torch.optim.AdamW(module.parameters(), lr=1e-3).step()
    moved = [not torch.equal(before[key], value) for key, value in parameters.items()]
    # Not all: a branch behind a scale that starts at zero has no slope in the first step.
    assert sum(moved) > 0.5 * len(moved)


@pytest.mark.parametrize(("name", "dimension"), FEW)
def test_a_backbone_trains_without_its_head(name: str, dimension: int) -> None:
    check_a_training_step(name, dimension)


@pytest.mark.slow
@pytest.mark.parametrize("named", MANY.split())
def test_many_more_backbones_train_without_their_heads(named: str) -> None:
    name, _, dimension = named.partition("=")
    check_a_training_step(name, int(dimension))


def test_a_size_that_does_not_suit_is_refused() -> None:
    config = BackboneConfig("timm/test_vit", "none")
    refused("does not take images of 150 pixels", create_backbone, config, 150)
    backbone = create_backbone(BackboneConfig("open_clip/ViT-S-32", "none"), 96)
    refused("the backbone does not take images of 128 pixels", feature_width, backbone.module, 128)
    assert feature_width(backbone.module.train(), 96) == 384
    assert backbone.module.training


@pytest.mark.parametrize(
    "name",
    [
        "timm/test_vit",
        "timm/test_convnext",
        pytest.param("open_clip/ViT-S-32", marks=pytest.mark.slow),
    ],
)
def test_checkpointed_gradients_are_the_same_and_save_activations(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneConfig(name, "none", pooling="gem"))
    module, size = backbone.module.train(), backbone.input_size
    photos = torch.randn(2, 3, size, size)
    gradients, kept = [], [0, 0]
    for step in range(2):
        if step:
            checkpoint_gradients(module)

        def keep(tensor: torch.Tensor, step: int = step) -> torch.Tensor:
            kept[step] += tensor.numel()
            return tensor

        module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = module(photos).square().sum()
        loss.backward()
        gradients.append(
            [value.grad.clone() for value in module.parameters() if value.grad is not None]
        )
    assert kept[1] < kept[0] / 2
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize(
    "name", ["timm/inception_v3", pytest.param("open_clip/RN50", marks=pytest.mark.slow)]
)
def test_a_network_without_checkpointing_says_so(name: str) -> None:
    module = create_backbone(BackboneConfig(name, "none")).module
    refused(r"backbone.gradient_checkpointing", checkpoint_gradients, module, name)


def test_drop_path_reaches_the_blocks() -> None:
    made = create_backbone(BackboneConfig("open_clip/convnext_tiny", "none", drop_path=0.25))
    rates = {getattr(part, "drop_prob", 0.0) for part in made.module.modules()}
    assert max(rates) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "choices", "words"),
    [
        ("resnet50", {}, "unicom/<model>"),
        ("timm/resnet5000", {}, "resnet50"),
        ("open_clip/ViT-B-33", {}, "open_clip has no architecture"),
        ("unicom/ViT-B-33", {}, "unicom has no model"),
        (TINY, {"weights": "package:nothing"}, "efficientnet_lite0"),
        (TINY, {"pooling": "median"}, r"backbone.pooling"),
        ("timm/test_vit", {"head_conv": False}, r"backbone\.head_conv"),
        ("timm/vgg11", {"drop_path": 0.1}, r"does not take backbone.drop_path"),
        ("open_clip/ViT-S-32", {"drop_path": 0.1}, r"does not take backbone.drop_path"),
    ],
)
def test_what_cannot_be_is_refused(name: str, choices: dict[str, Any], words: str) -> None:
    refused(words, create_backbone, BackboneConfig(name, **{"weights": "none", **choices}))


def test_the_head_convolution_can_be_left_out() -> None:
    made = create_backbone(
        BackboneConfig("timm/tf_efficientnet_lite0", "none", head_conv=False), 64
    )
    assert made.dimension == 320
    maps: dict[str, torch.Tensor] = {}
    blocks = made.module.get_submodule("blocks")
    blocks.register_forward_hook(lambda _m, _i, out: maps.update(last=out))
    pixels = torch.randn(2, 3, 64, 64)
    features = made.module.eval()(pixels)
    torch.testing.assert_close(features, maps["last"].mean(dim=(2, 3)))
