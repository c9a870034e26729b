"""Features kept in place of photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from visual_search.cached_features import CachedViews, random_crop
from visual_search.config import BackboneConfig
from visual_search.data.augment import build_augmentation
from visual_search.data.datasets import LabelledImages, TrainingImages
from visual_search.data.images import ImageItem, load_pixels
from visual_search.model.embedder import build_embedder


def test_views_are_the_tower_on_crops(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    paths[2].write_bytes(b"no photo")
    labelled = LabelledImages(paths, np.array([0, 0, 1, 1, 2, 2]))
    photos = TrainingImages(labelled, build_augmentation("none", 32), 32, 7)
    torch.manual_seed(0)
    visual, built = build_embedder(BackboneConfig("timm/test_resnet", "none"), 32)
    visual.eval()
    views = CachedViews(photos, 3)
    views.fill(visual, 32, tmp_path / "cache", device=torch.device("cpu"), progress=False)
    assert views.features.shape == (6, 3, built.dimension)
    for number, view in ((0, 0), (1, 2), (5, 1)):
        box = random_crop(ImageItem(paths[number]), view, 7) if view else None
        pixels, _ = load_pixels(ImageItem(paths[number], box), 32)
        with torch.no_grad():
            expected = F.normalize(visual(torch.from_numpy(pixels)[None]), dim=1)[0]
        torch.testing.assert_close(views.features[number, view], expected, atol=1e-5, rtol=1e-4)
    # The broken photo's stand-in is of its own product.
    features, label, wanted, passed_over = views[2]
    assert (label, wanted, passed_over) == (1, 2, 1)
    assert any(torch.equal(features, view) for view in views.features[3])
    drawn = set()
    for epoch in range(12):
        views.set_epoch(epoch)
        assert torch.equal(views[0][0], views[0][0])
        drawn.add(next(v for v in range(3) if torch.equal(views[0][0], views.features[0, v])))
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize("box", [None, (5, 3, 20, 9)])
def test_crops_lie_inside(tmp_path: Path, box: tuple[int, int, int, int] | None) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (50, 30)).save(path)
    left, top, width, height = box or (0, 0, 50, 30)
    shapes = set()
    for view in range(200):
        crop = random_crop(ImageItem(path, box), view, 1)
        assert crop is not None
        x, y, w, h = crop
        assert left <= x
        assert top <= y
        assert x + w <= left + width
        assert y + h <= top + height
        assert w * h >= 0.3 * width * height
        shapes.add(crop)
    assert len(shapes) > 50
    assert random_crop(ImageItem(tmp_path / "none.png"), 1, 1) is None
