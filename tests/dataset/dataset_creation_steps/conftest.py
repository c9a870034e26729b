"""A small Amazon: images on a loopback server, reviews and products in the true format."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import draw_product


def jpeg(product: int, image: int, side: int = 96) -> bytes:
    data = io.BytesIO()
    draw_product(product, image, side).save(data, "JPEG", quality=92)
    return data.getvalue()


@pytest.fixture(scope="session")
def model_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose cosines spread: random features, less their mean over drawn images."""
    from visual_search.config import BackboneConfig, NeckConfig
    from visual_search.model.checkpoint import save_checkpoint
    from visual_search.model.embedder import build_embedder

    torch.manual_seed(0)
    embedder, architecture = build_embedder(
        BackboneConfig("timm/test_efficientnet", "none", std=(0.25,) * 3), 64, NeckConfig("linear")
    )
    embedder.eval()
    neck = embedder.neck
    assert isinstance(neck, torch.nn.Linear)
    drawn = [np.asarray(draw_product(p, i, 64)) for p in range(100, 140) for i in range(2)]
    pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    with torch.no_grad():
        neck.weight.copy_(torch.eye(architecture.dimension))
        neck.bias.zero_()
        features = embedder.features(pixels)
        neck.bias.copy_(-features.mean(dim=0))
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder, architecture, embedder.state_dict(), {}, {"run": "tiny"})
    return folder


@pytest.fixture
def environment(project: Path) -> dict[str, str]:
    """Of the commands: the project's own root, one thread, so that they share two cores well."""
    return os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
