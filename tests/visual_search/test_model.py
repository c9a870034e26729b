from __future__ import annotations

import pytest
import torch
import torchvision.transforms.functional as tf

from visual_search.errors import UserError
from visual_search.model import build_embedder, rebuild_embedder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_embeddings_are_unit_vectors_of_normalised_pixels() -> None:
    torch.manual_seed(0)
    embedder, architecture = build_embedder("timm/test_vit", "none", 160, MEAN, STD)
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
        "timm/test_vit", "none", 160, MEAN, STD, "linear-bn", 32
    )
    again = rebuild_embedder(architecture)
    again.load_state_dict(embedder.state_dict())
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again.eval()(pixels), embedder.eval()(pixels))
        assert again(pixels).shape == (2, 32)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="linear-bn"):
        build_embedder("timm/test_vit", "none", 160, MEAN, STD, "none", 32)
    with pytest.raises(UserError, match="std above 0"):
        build_embedder("timm/test_vit", "none", 160, MEAN, (1, 1, 0))
    with pytest.raises(UserError, match="neck"):
        build_embedder("timm/test_vit", "none", 160, MEAN, STD, "conv")
