"""Training on cached features, against the same training on photos."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from tests.commands import logged, refused
from tests.conftest import read_phase
from visual_search import cached_features
from visual_search.cached_features import FrozenFeatures, random_crop
from visual_search.common.run_folder import RunFolder
from visual_search.config import BackboneConfig, EmbedSettings
from visual_search.data.augment import build_augmentation
from visual_search.data.datasets import LabelledImages, TrainingImages
from visual_search.data.images import ImageItem, load_pixels
from visual_search.model.embedder import build_embedder
from visual_search.phase import ImagePhase
from visual_search.ranking.store import Features, FeatureSource
from visual_search.train import train_phase


@pytest.fixture
def universal(small_phase: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The recipe, small: what is trained are a neck of 8 dimensions and a head."""
    small_phase["dataset"] |= {"augmentations": "none"}
    small_phase["backbone"] |= {"trainable_blocks": 0}
    return {
        **small_phase,
        "neck": {"kind": "norm-linear", "dimension": 8, "initial": "lda"},
        "margin": {"centers": 1, "dropout": 0.0, "imprint": True, "nested": [2, 4]},
        "optim": {"head_lr": 0.01, "warmup_steps": 0},
        "train": {
            "epochs": 3,
            "cache_features": True,
            "feature_cache": str(tmp_path / "features"),
            "ema_decay": 0.5,
        },
    }


def train(values: dict[str, Any], tmp_path: Path, name: str, **extra: Any) -> Path:
    run = RunFolder(tmp_path / "runs", name)
    config, text = read_phase(tmp_path / "phase.yml", values)
    train_phase(config, ImagePhase, run, text, **extra)
    return run.path


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in logged(run, "step")]


def test_it_trains_as_the_frozen_backbone_on_photos_does(
    universal: dict[str, Any], tmp_path: Path
) -> None:
    plain = universal | {
        "neck": {"kind": "norm-linear", "dimension": 8},
        "margin": universal["margin"] | {"imprint": False},
        "train": universal["train"] | {"log_steps": 1},
    }
    cached = train(plain, tmp_path, "cached")
    on_photos = train(
        plain | {"train": plain["train"] | {"cache_features": False}}, tmp_path, "photos"
    )
    assert len(losses(cached)) == 12
    assert losses(cached) == pytest.approx(losses(on_photos), rel=2e-3)
    states = [load_file(run / "last" / "model.safetensors") for run in (cached, on_photos)]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=2e-3, rtol=2e-2)
    results = [json.loads((run / "result.json").read_text()) for run in (cached, on_photos)]
    assert results[0]["mAP"] == pytest.approx(results[1]["mAP"], abs=0.1)


def test_a_killed_run_goes_on_with_the_same_weights_and_embeds_nothing_again(
    universal: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = train(universal, tmp_path, "whole")

    def kill(step: int, score: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(universal, tmp_path, "killed", on_validation=kill)
    state = next((tmp_path / "runs" / "killed" / "state").rglob("*.pt"), None)
    assert state is None or state.stat().st_size < 2e6  # the backbone is not in it
    capsys.readouterr()
    resumed = train(universal, tmp_path, "killed")
    told = capsys.readouterr().out
    assert "continues in epoch 2" in told
    assert "24 training images: 24 at hand, 0 embedded" in told
    for part in ("best/model", "last/model", "last/head"):
        ours, theirs = (load_file(run / f"{part}.safetensors") for run in (whole, resumed))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_unreadable_photos_have_stand_ins_of_their_class() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0]).numpy()
    images = LabelledImages([Path(f"{row}.jpg") for row in range(5)], labels)
    training = TrainingImages(images, lambda image: torch.zeros(0), 8, 0)
    rows = FrozenFeatures(training)
    reasons = ("", "cut, its readable part is used", "empty; a grey image is used", "", "")
    rows.fill(Features(torch.arange(5.0)[:, None], reasons, 0))
    features, given, wanted, passed_over = rows.__getitems__([2, 1, 7, 0])  # 7 is 2 once more
    assert features.flatten().tolist() == [4.0, 1.0, 4.0, 0.0]
    assert given.tolist() == [0, 1, 0, 0]
    assert wanted.tolist() == [2, 1, 2, 0]
    assert passed_over.tolist() == [1, 0, 1, 0]
    assert training.unreadable(2, 1) == [Path("2.jpg")]
    assert rows.shown().flatten().tolist() == [0.0, 1.0, 4.0, 3.0, 4.0]
    nothing = Features(torch.zeros(5, 1), (f"x{cached_features._NOTHING}",) * 5, 0)
    refused("none of the training images", rows.fill, nothing)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": {"trainable_blocks": -1}}, "backbone.trainable_blocks must be 0"),
        ({"dataset": {"augmentations": "flip"}}, "dataset.augmentations must be none"),
        ({"neck": {"kind": "none", "initial": "random"}}, "neck.kind must not be none"),
        ({"train": {"cache_features": False}}, "neck.initial lda needs train.cache_features"),
        ({"pretrain_model": "runs/x"}, "set neck.initial to random"),
        ({"margin": {"nested": [4, 2]}}, "write rising widths from 1 to 7"),
        ({"margin": {"nested": [8]}}, "write rising widths from 1 to 7"),
        ({"margin": {"sampled_share": 0.5}}, "margin.sampled_share to 1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    universal: dict[str, Any], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    for key, value in change.items():
        universal[key] = universal[key] | value if isinstance(value, dict) else value
    refused(re.escape(words), train, universal, tmp_path, "refused")
    assert not (tmp_path / "runs" / "refused").exists()


def test_views_are_the_tower_on_crops(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    labelled = LabelledImages(paths, np.array([0, 0, 1, 1, 2, 2]))
    photos = TrainingImages(labelled, build_augmentation("none", 32), 32, 7)
    torch.manual_seed(0)
    visual, built = build_embedder(BackboneConfig("timm/test_resnet", "none"), 32)
    visual.eval()
    views = FrozenFeatures(photos, 3)
    source = FeatureSource(visual, built, EmbedSettings(), tmp_path, torch.device("cpu"), False)
    views.fill(source.features(views.items(), "images"))
    assert views.matrix.shape == (6, 3, built.dimension)
    for number, view in ((0, 0), (1, 2), (5, 1)):
        box = random_crop(ImageItem(paths[number]), view, 7) if view else None
        pixels, _ = load_pixels(ImageItem(paths[number], box), 32)
        with torch.no_grad():
            expected = F.normalize(visual(torch.from_numpy(pixels)[None]), dim=1)[0]
        torch.testing.assert_close(views.matrix[number, view], expected, atol=1e-5, rtol=1e-4)
    drawn = set()
    for epoch in range(12):
        views.set_epoch(epoch)
        shown = views.__getitems__([0])[0][0]
        assert torch.equal(views.__getitems__([5, 0])[0][1], shown)
        drawn.add(next(v for v in range(3) if torch.equal(shown, views.matrix[0, v])))
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
        assert left <= x <= x + w <= left + width
        assert top <= y <= y + h <= top + height
        assert w * h >= 0.3 * width * height
        shapes.add(crop)
    assert len(shapes) > 50
    assert random_crop(ImageItem(tmp_path / "none.png"), 1, 1) is None


def test_damaged_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visual, built = build_embedder(BackboneConfig("timm/test_resnet", "none"), 32)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    source = FeatureSource(visual, built, EmbedSettings(), tmp_path, torch.device("cpu"))
    for _ in range(2):  # the second time from the store
        source.features([ImageItem(tmp_path / "a.png")], "images")
        assert f"embedded, 1 damaged, for example {tmp_path / 'a.png'}: " in capsys.readouterr().out
