"""Settings of a phase on image–text pairs that do not fit each other."""

import re
from dataclasses import replace
from typing import Any

import pytest
from accelerate import Accelerator

from tests.commands import refused
from visual_search.text.config import ClipConfig
from visual_search.text.phase import ClipPhase

WRONG: dict[str, dict[str, Any]] = {
    "train.cache_features is for images with classes": {"train": {"cache_features": True}},
    "dataset.cached_views are of a frozen visual tower": {"dataset": {"cached_views": 1}},
    "dataset.cached_views are crops without other augmentations": {
        "dataset": {"cached_views": 1},
        "backbone": {"trainable_blocks": 0},
    },
    "backbone.drop_path changes nothing in a frozen tower": {
        "dataset": {"cached_views": 1, "augmentations": "none"},
        "backbone": {"trainable_blocks": 0, "drop_path": 0.1},
    },
    "optim.layer_decay is for one tower": {"optim": {"layer_decay": 0.9}},
    "train.whitening has no classes": {"train": {"whitening": 16}},
    "train.head_epochs is 9; it must be 0 to 4": {"train": {"head_epochs": 9, "epochs": 4}},
    "projection.class_names imagenet needs `use`": {"projection": {"class_names": "imagenet"}},
    "projection.initial ridge needs projection.kind linear": {
        "projection": {"initial": "ridge", "kind": "residual"}
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_settings_that_do_not_fit_are_refused(message: str) -> None:
    config = ClipConfig()
    changed = {
        part: replace(getattr(config, part), **keys) for part, keys in WRONG[message].items()
    }
    refused(re.escape(message), ClipPhase, replace(config, **changed), Accelerator())
