"""A run that is killed again and again ends as one that was left alone."""

import json
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.commands import told
from tests.conftest import spare_plots, write_yaml
from tests.visual_search.drawn_pairs import small_clip, write_drawn_pairs
from tests.warm import start_python
from visual_search import main_arcface, main_clip
from visual_search.common.run_folder import RunFolder

COMMON: dict[str, Any] = {
    "dataset": {"num_of_classes": 6, "input_size": 32, "batch_size": 4, "num_workers": 1},
    "backbone": {"name": "timm/test_efficientnet", "weights": "none"},
    "optim": {"head_lr": 0.01, "backbone_lr_ratio": 1.0, "warmup_steps": 2},
    "train": {"epochs": 2, "save_steps": 1, "log_steps": 1, "ema_decay": 0.9, "soup_last": 2},
}

STATES = "state/step-*/complete.json"

# Between them: everything in a run that has a state of its own.
VARIANTS: dict[str, dict[str, Any]] = {
    "memory": {
        "dataset": {"augmentations": "autoaugment", "sampler": {"kind": "m-per-class"}},
        "margin": {"name": "elasticface-arc-plus", "grow": "linear", "dropout": 0.3},
        "pairs": {"name": "contrastive", "memory": 17, "memory_start": 2},
        "train": {"accumulate": 2, "head_epochs": 1},
    },
    "sampled": {
        "dataset": {"augmentations": "flip", "mixing": {"kind": "both", "probability": 0.5}},
        "margin": {"name": "adaface", "class_margins": "none", "sampled_share": 0.6},
        "optim": {"name": "radam", "schedule": "plateau", "patience": 0},
        "train": {"validate_steps": 2},
    },
}

TEXTS: dict[str, Any] = {
    "dataset": {"cached_views": 2, "augmentations": "none"},
    "backbone": {"trainable_blocks": 0},
    "projection": {"feature_noise": 0.1, "feature_dropout": 0.1},
    "train": {"epochs": 4, "validate_every": 1, "save_steps": 1, "ema_decay": 0.9},
}


def wait_for_growth(folder: Path, process: BaseProcess) -> None:
    """Return when the run has a whole state that was not there before, or has ended."""
    before = set(folder.glob(STATES))
    while process.exitcode is None:
        if set(folder.glob(STATES)) - before:
            return
        time.sleep(0.005)


def merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    return {key: {**one.get(key, {}), **two.get(key, {})} for key in {**one, **two}}


@pytest.mark.parametrize(
    ("variant", "kills"),
    [
        ("memory", 1),
        pytest.param("memory", 2, marks=pytest.mark.slow),
        pytest.param("sampled", 2, marks=pytest.mark.slow),
        pytest.param("texts", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(
    variant: str,
    kills: int,
    tmp_path: Path,
    product10k_folder: Path,
    dev_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spare_plots(monkeypatch)
    values = merged(COMMON, VARIANTS.get(variant, {}))
    if variant == "texts":
        pairs = write_drawn_pairs(tmp_path / "data", photos=4)
        values = merged(small_clip(pairs), TEXTS)
        values["train"]["feature_cache"] = str(tmp_path / "features")
    else:
        values["dataset"]["product10k"] = {"train_valid_root": str(product10k_folder)}
        values["dataset"]["dev_set"] = {"eval_root": str(dev_folder)}
    config = write_yaml(tmp_path / "phase.yml", values)
    main = main_clip.main if variant == "texts" else main_arcface.main
    rng, runs = random.Random(variant), tmp_path / "runs"
    common = ("--config", config, "--runs", runs, "--name")
    told(main, *common, "calm")
    for _ in range(kills):
        process = start_python(
            *("-m", main.__module__, *common, "killed"), out=tmp_path / "killed.log"
        )
        wait_for_growth(runs / "killed", process)
        time.sleep(rng.uniform(0.0, 0.4) if kills > 1 else 0.0)
        process.kill()
        process.join()
        assert process.exitcode, (tmp_path / "killed.log").read_text()
    # A fast machine may be past the last step after a wait, when no state is left to continue from.
    left = any((runs / "killed").glob(STATES))
    assert left or kills > 1
    assert ("continues in epoch" in told(main, *common, "killed")) == left

    for part in ("last/model", "last/head", "best/model", "best/head"):
        one, two = (load_file(runs / name / f"{part}.safetensors") for name in ("calm", "killed"))
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one), part
    calm, killed = (  # the seconds and images of an epoch are those of the last process
        [line for line in RunFolder(runs, name).metrics() if line["kind"] != "epoch"]
        for name in ("calm", "killed")
    )
    assert calm == killed
    results = [json.loads((runs / name / "result.json").read_text()) for name in ("calm", "killed")]
    assert results[0]["mAP"] == results[1]["mAP"]
    assert not (runs / "killed" / "state").exists()
