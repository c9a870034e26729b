from typing import Any

import pytest
import torch
from torch import nn

from tests.commands import refused
from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig
from visual_search.model.backbones import create_backbone
from visual_search.model.patches import resized_state


class OnlyPositions(nn.Module):
    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


def test_maps_and_tables_of_positions_are_resized() -> None:
    module = OnlyPositions(
        pos_embed=(1, 3, 12, 12), relative_position_bias_table=(13 * 13, 2), weight=(4,)
    )
    state = {
        "pos_embed": torch.ones(1, 3, 8, 8),
        "relative_position_bias_table": torch.ones(7 * 7, 2),
        "weight": torch.zeros(4),
        "unknown": torch.zeros(1),
    }
    resized = resized_state(state, module)
    assert resized["unknown"] is state["unknown"]
    for name, value in module.named_parameters():
        assert resized[name].shape == value.shape
    torch.testing.assert_close(resized["pos_embed"], torch.ones(1, 3, 12, 12))
    table = resized["relative_position_bias_table"]
    torch.testing.assert_close(table, torch.ones(169, 2))


def test_other_shapes_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"weight has shape \(5,\), the model \(4,\)"):
        resized_state({"weight": torch.ones(5)}, OnlyPositions(weight=(4,)))
    with pytest.raises(UserError, match="pos_embed has shape"):
        resized_state({"pos_embed": torch.ones(1, 65, 9)}, OnlyPositions(pos_embed=(1, 50, 8)))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("timm/test_vit", (160, 224)),
        ("timm/test_vit_relpos", (160, 192)),
        pytest.param("timm/swin_s3_tiny_224", (224, 192), marks=pytest.mark.slow),
        pytest.param("timm/xcit_nano_12_p8_224", (224, 96), marks=pytest.mark.slow),
        ("timm/gmlp_ti16_224", (224, 224)),
        ("open_clip/ViT-S-32", (224, 128)),
        pytest.param("open_clip/RN50", (224, 96), marks=pytest.mark.slow),
    ],
)
def test_weights_of_one_input_size_serve_another(name: str, sizes: tuple[int, int]) -> None:
    old, new = (create_backbone(BackboneConfig(name, "none"), size).module for size in sizes)
    new.load_state_dict(resized_state(old.state_dict(), new))
    with torch.inference_mode():
        assert torch.isfinite(new.eval()(torch.randn(1, 3, sizes[1], sizes[1]))).all()


def test_timm_transformers_take_photos_of_other_sizes_as_well() -> None:
    torch.manual_seed(0)
    small = create_backbone(BackboneConfig("timm/test_vit", "none"), 160).module.eval()
    large = create_backbone(BackboneConfig("timm/test_vit", "none"), 224).module.eval()
    large.load_state_dict(resized_state(small.state_dict(), large))
    photos = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(small(photos), large(photos), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "patch", "overlap", "size"),
    [
        ("timm/test_vit", 16, 4, 160),
        ("timm/test_vit", 16, 6, 100),
        ("timm/eva02_tiny_patch14_224", 14, 4, 96),
        ("open_clip/ViT-S-32", 32, 8, 128),
    ],
)
def test_overlapping_patches_make_a_finer_grid(
    name: str, patch: int, overlap: int, size: int
) -> None:
    module: Any = create_backbone(BackboneConfig(name, "none", patch_overlap=overlap), size).module
    starts = [x for x in range(size) if x % (patch - overlap) == 0 and x + patch <= size]
    positions = module.pos_embed if "timm" in name else module.positional_embedding[None]
    assert positions.shape[1] == 1 + len(starts) ** 2
    conv = module.patch_embed.proj if "timm" in name else module.conv1
    photo = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        embedded = conv(photo)
        assert embedded.shape[2:] == (len(starts), len(starts))
        # The second patch of the first row, by hand.
        window = photo[:, :, :patch, starts[1] : starts[1] + patch]
        expected = (window * conv.weight).sum(dim=(1, 2, 3))
        expected = expected + (conv.bias if conv.bias is not None else 0)
        torch.testing.assert_close(embedded[0, :, 0, 1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "overlap", "words"),
    [
        ("timm/test_vit", 16, "write 0..15"),
        ("timm/test_vit", -1, "write 0..15"),
        ("timm/resnet18", 4, "no patches that can overlap"),
        ("timm/vit_tiny_r_s16_p8_224", 4, "no patches that can overlap"),
        ("open_clip/RN50", 4, "no patches that can overlap"),
    ],
)
def test_overlaps_that_cannot_be_are_refused(name: str, overlap: int, words: str) -> None:
    refused(words, create_backbone, BackboneConfig(name, "none", patch_overlap=overlap))
