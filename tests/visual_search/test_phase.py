from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import read_phase
from visual_search.common.run_folder import RunFolder
from visual_search.config import MarginConfig
from visual_search.data.images import load_pixels
from visual_search.losses.margin_head import MarginHead
from visual_search.losses.partial_fc import SampledMarginHead
from visual_search.model.checkpoint import load_checkpoint
from visual_search.phase import ImagePhase
from visual_search.train import train_phase
from visual_search.validation import Validator


def test_centres_stand_at_the_mean_of_their_class(
    small_phase: dict[str, Any], tmp_path: Path
) -> None:
    small_phase["dataset"]["num_of_classes"] = 8
    settings = {**small_phase, "margin": {"imprint": True}}
    phase = ImagePhase(read_phase(tmp_path / "phase.yml", settings)[0], Accelerator())
    embedder, head, images = phase.learner.embedder, phase.learner.head, phase.images.images
    assert head is not None
    before = head.weight.detach().clone().view(8, 3, -1)
    embedder.train()
    phase.start_weights()
    assert embedder.training
    after = head.weight.detach().view(8, 3, -1)
    embedder.eval()
    for number in range(6):
        rows = np.flatnonzero(images.labels == number).tolist()
        pixels = np.stack([load_pixels(images.item(row), 32)[0] for row in rows])
        with torch.inference_mode():
            mean = embedder(torch.from_numpy(pixels)).mean(dim=0)
        cosines = torch.nn.functional.cosine_similarity(after[number], mean[None], dim=1)
        # A tenth of noise: cos(atan(0.1)) = 0.995, and the sub-centres still differ.
        assert cosines.min() > 0.99
        assert not torch.allclose(after[number, 0], after[number, 1], atol=1e-4)
        torch.testing.assert_close(after[number].norm(dim=1), before[number].norm(dim=1))
    # Classes 6 and 7 have no photo and keep what they had.
    assert torch.equal(after[6:], before[6:])


def test_a_head_takes_the_centres_of_another_of_the_same_classes() -> None:
    config = MarginConfig(centers=2)
    source = MarginHead(5, torch.ones(4), config, seed=1)
    for head in (
        MarginHead(5, torch.ones(4), config, seed=2),
        SampledMarginHead(5, torch.ones(4), config, seed=2),
    ):
        assert head.take_centers(source.weight.detach())
        assert torch.equal(head.weight, source.weight)
    other = MarginHead(5, torch.ones(4), MarginConfig(centers=3))
    before = other.weight.detach().clone()
    assert not other.take_centers(source.weight.detach())
    assert torch.equal(other.weight, before)


def test_a_whitened_model_keeps_the_head_of_its_epoch(
    small_phase: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of two epochs, and of the first one's model whitened.
    found = iter(SimpleNamespace(mean_average_precision=score) for score in (0.5, 0.4, 0.6))
    whitening = SimpleNamespace(evaluate=lambda *_: next(found))
    monkeypatch.setattr(
        Validator, "_evaluate", lambda _: SimpleNamespace(**vars(next(found)), seen=whitening)
    )
    monkeypatch.setattr(Validator, "_report", lambda *_: None)
    small_phase["train"] = {"epochs": 2, "whitening": 1.0}
    run, heads = RunFolder(tmp_path, "x"), list[Tensor]()

    def on_validation(step: int, score: float) -> None:
        heads.append(load_file(run.last / "head.safetensors")["weight"])

    config = read_phase(tmp_path / "phase.yml", small_phase)[0]
    train_phase(config, ImagePhase, run, "x: 1", on_validation=on_validation)
    best = load_checkpoint(run.path)
    assert (best.architecture.neck, best.facts["averaged"]) == ("whitening", "no")
    head = load_file(run.best / "head.safetensors")["weight"]
    assert torch.equal(head, heads[0])
    assert not torch.equal(head, heads[1])
