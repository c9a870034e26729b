"""A key of which the command says nothing changes what is trained: each key, by a real training."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import read_phase
from tests.visual_search.test_unused import CASES, another, with_key
from visual_search.common.errors import UserError
from visual_search.common.run_folder import FREE_TO_CHANGE, RunFolder
from visual_search.common.unused import unused
from visual_search.config import PhaseConfig, TableConfig
from visual_search.phase import build_image_phase
from visual_search.train import train_phase

# What changes no score, by its nature: speed, memory, folders, what is written when, trackers.
SILENT = {
    *FREE_TO_CHANGE, "dataset.augmentations_valid", "backbone.gradient_checkpointing",
    "train.channels_last", "train.compile", "train.sync_batchnorm", "embedding.memory_format",
    "embedding.batch_size", "embedding.workers", "embedding.backend", "embedding.min_cosine",
    "embedding.precision",
    # The tiny data and model of this test have no borders, no images but squares, no further
    # weights, no paths to drop.
    "embedding.trim_borders", "embedding.views", "backbone.weights", "backbone.drop_path",
    # A process knows one precision; and nothing goes stale within two epochs here.
    "train.precision", "train.early_stopping",
}  # fmt: skip

VALUES: dict[str, Any] = {
    "dataset.input_size": 40, "dataset.input_size_valid": 40, "dataset.max_classes": 3,
    "dataset.batch_size": 4, "dataset.product10k.weight": 0.5, "neck.dimension": 8,
    "dataset.product10k.more_than": 4, "dataset.tables": (TableConfig("other.csv"),),
    "neck.kind": "linear", "backbone.name": "timm/test_resnet", "backbone.pooling": "gem",
    "backbone.trainable_blocks": 1, "backbone.frozen_stages": 2, "train.head_epochs": 1,
    "train.validate_every": 2, "train.validate_steps": 3, "train.early_stopping": 1,
    "train.soup_last": 2, "train.whitening": 1.0, "optim.warmup_steps": 0, "margin.scale": 4.0,
    "optim.gradient_clip": 0.01, "optim.floor": 0.5, "margin.nested": (4, 8), "train.epochs": 1,
    "margin.class_margins": "power", "dataset.mixing.kind": "mixup", "pairs.name": "contrastive",
    "margin.sampled_share": 0.5, "optim.weight_decay": 5.0, "backbone.head_conv": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    return {}


def observed(config: PhaseConfig, folder: Path) -> str:
    """All that a training leaves, less times and words: a digest, or the sentence that refuses."""
    done = RunFolder(folder, "x")
    try:
        train_phase(config, build_image_phase, done, "x: 1", True)
    except UserError as error:
        return f"refused: {error}"
    files = [*sorted(done.path.glob("*/*.safetensors")), done.path / "classes.json"]
    lines = [line for line in done.metrics() if line["kind"] != "epoch"]
    marks = [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]
    said = b"".join(path.read_bytes() for path in files) + repr(marks).encode()
    return hashlib.sha256(said).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "hint", "default"),
    [
        pytest.param(key, hint, default, id=str(key))
        for root, key, hint, default in (case.values for case in CASES)
        if root is PhaseConfig
    ],
)
def test_a_key_of_which_nothing_is_said_changes_the_training(
    key: str,
    hint: Any,
    default: Any,
    small_phase: dict[str, Any],
    tmp_path: Path,
    seen: dict[str, str],
) -> None:
    train = {"epochs": 2, "validate_every": 1, "log_steps": 1}
    optim = {"head_lr": 0.01, "backbone_lr_ratio": 1.0}
    settings = {**small_phase, "train": train, "optim": optim}
    config = read_phase(tmp_path / "phase.yml", settings)[0]
    now = config
    for name in key.split("."):
        now = getattr(now, name)
    changed = with_key(config, key, VALUES.get(key, another(key, hint, now)))
    if key in SILENT or unused(changed, {key}):
        return
    if "plain" not in seen:
        seen["plain"] = observed(config, tmp_path / "plain")
    made = observed(changed, tmp_path / "changed")
    assert made != seen["plain"]
    if made.startswith("refused"):
        assert key.rpartition(".")[2] in made or "other" in made
