from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.conftest import read_phase
from visual_search.config import MarginConfig, PhaseConfig, TrainConfig
from visual_search.model.embedder import Embedder
from visual_search.objective import Learner
from visual_search.phase import ImagePhase


def test_the_loss_is_the_mean_over_the_nested_widths() -> None:
    torch.manual_seed(0)
    embedder = Embedder(nn.Identity(), nn.Linear(5, 8), (0.0,) * 3, (1.0,) * 3)
    margin = MarginConfig(centers=1, nested=(2, 4), dropout=0.0)
    phase = PhaseConfig(margin=margin, train=TrainConfig(cache_features=True))
    learner = Learner(embedder, 8, phase, torch.tensor([3, 5, 2, 7]))
    head = learner.head
    assert head is not None
    features, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = learner(features, labels, torch.arange(6))
    embeddings = embedder.neck(features)
    parts = [head(embeddings, labels)]
    parts += [head.prefix_losses(embeddings, labels, width) for width in (2, 4)]
    torch.testing.assert_close(loss, torch.stack(parts).mean())
    learner.compile_features()
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(learner(features, labels, torch.arange(6)), loss)


@pytest.mark.parametrize("mixing", ["none", "mixup"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_what_a_margin_learns_of_the_data_moves_once_a_batch(
    mixing: str, share: float, small_phase: dict[str, Any], tmp_path: Path
) -> None:
    small_phase["dataset"]["mixing"] = {"kind": mixing}
    small_phase["margin"] = {"name": "adaface", "sampled_share": share, "dropout": 0.0}
    phase = ImagePhase(read_phase(tmp_path / "phase.yml", small_phase)[0], Accelerator(cpu=True))
    batch = next(iter(phase.batches()[1]))
    inputs = phase.inputs(batch)
    assert len(inputs) == (3 if mixing == "none" else 5)  # the head looks once, or at two labels
    lengths = phase.learner.embedder.features(inputs[0]).norm(dim=1)
    phase.learner(*inputs)
    expected = 0.99 * 20.0 + 0.01 * lengths.mean()
    torch.testing.assert_close(phase.learner.head.rule.length_mean, expected)


def test_a_teacher_is_where_the_images_are(
    small_phase: dict[str, Any], tiny_export: Path, tmp_path: Path
) -> None:
    small_phase["distillation"] = {"run": str(tiny_export)}
    elsewhere = SimpleNamespace(device=torch.device("meta"), process_index=0, num_processes=1)
    phase = ImagePhase(read_phase(tmp_path / "phase.yml", small_phase)[0], cast(Any, elsewhere))
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device="meta")
    assert phase.learner._teacher[0](pixels).device.type == "meta"
