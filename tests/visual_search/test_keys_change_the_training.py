"""A key of which the command says nothing changes what is trained: each key, by a real training."""

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from tests.conftest import read_phase
from tests.visual_search.test_unused import with_key
from visual_search.common.errors import UserError
from visual_search.common.keys import Key, keys_of
from visual_search.common.run_folder import FREE_TO_CHANGE, RunFolder
from visual_search.common.unused import unused
from visual_search.config import PhaseConfig, TableConfig
from visual_search.phase import ImagePhase
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
    # Nothing goes stale within two epochs here.
    "train.early_stopping",
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
    "optim.betas": (0.5, 0.9), "optim.milestones": (0.2, 0.3), "optim.momentum": 0.5,
    "backbone.mean": (0.1, 0.2, 0.3), "backbone.std": (0.1, 0.2, 0.3), "margin.power": -0.5,
    "backbone.layers": (1,), "backbone.layer_weights": (0.5,), "embedding.view_sizes": (40,),
    "pretrain_model": "runs/other", "train.precision": "bf16",
}  # fmt: skip


def another(key: Key, now: Any) -> Any:
    """A value that is allowed, and not the one that there is."""
    hint = key.hint.__origin__ if hasattr(key.hint, "__metadata__") else key.hint
    if get_origin(hint) is Literal:
        # Of a key with a single choice, one of earlier versions: nothing reads it.
        return next((choice for choice in reversed(get_args(hint)) if choice != now), "gone")
    if isinstance(now, bool):
        return not now
    if isinstance(now, int):
        return now + 1
    return (now / 2 if now else 0.5) if isinstance(now, float) else f"{now}_other"


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    return {}


def observed(config: PhaseConfig, folder: Path) -> str:
    """All that a training leaves, less times and words: a digest, or the sentence that refuses."""
    done = RunFolder(folder, "x")
    try:
        train_phase(config, ImagePhase, done, "x: 1", True)
    except UserError as error:
        return f"refused: {error}"
    files = [*sorted(done.path.glob("*/*.safetensors")), done.path / "classes.json"]
    lines = [line for line in done.metrics() if line["kind"] != "epoch"]
    marks = [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]
    said = b"".join(path.read_bytes() for path in files) + repr(marks).encode()
    return hashlib.sha256(said).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", [key for key in keys_of(PhaseConfig()) if key.name not in SILENT], ids=lambda k: k.name
)
def test_a_key_of_which_nothing_is_said_changes_the_training(
    key: Key, small_phase: dict[str, Any], tmp_path: Path, seen: dict[str, str]
) -> None:
    train = {"epochs": 2, "validate_every": 1, "log_steps": 1}
    optim = {"head_lr": 0.01, "backbone_lr_ratio": 1.0}
    settings = {**small_phase, "train": train, "optim": optim}
    config = read_phase(tmp_path / "phase.yml", settings)[0]
    now = config
    for name in key.name.split("."):
        now = getattr(now, name)
    value = VALUES[key.name] if key.name in VALUES else another(key, now)
    changed = with_key(config, key.name, value)
    if unused(changed, {key.name}):
        return
    if "plain" not in seen:
        seen["plain"] = observed(config, tmp_path / "plain")
    made = observed(changed, tmp_path / "changed")
    assert made != seen["plain"]
    if made.startswith("refused"):
        assert key.name.rpartition(".")[2] in made or "other" in made


@pytest.mark.parametrize("key", ["backbone.gradient_checkpointing", "train.sync_batchnorm"])
def test_activations_computed_twice_and_norms_of_one_process_change_nothing(
    key: str, small_phase: dict[str, Any], tmp_path: Path
) -> None:
    """Neither the weights nor the running statistics, to the bit."""
    plain = read_phase(tmp_path / "phase.yml", small_phase)[0]
    other = with_key(plain, key, True)
    assert observed(plain, tmp_path / "a") == observed(other, tmp_path / "b")
