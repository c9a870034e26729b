"""No key that is set is ignored without a word; each key: test_keys_change_the_training.py."""

import dataclasses
from typing import Any

import pytest

from visual_search.common.unused import unused
from visual_search.config import PhaseConfig
from visual_search.text.config import ClipConfig


def with_key(config: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    inner = with_key(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})


@pytest.mark.parametrize("root", [PhaseConfig, ClipConfig])
def test_nothing_is_said_of_defaults(root: Any) -> None:
    assert unused(root()) == []


@pytest.mark.parametrize(
    ("root", "settings", "said"),
    [
        (PhaseConfig, {"margin.margin": 0.3}, ""),
        (
            *(PhaseConfig, {"margin.margin": 0.3, "margin.class_margins": "minmax"}),
            "margin.margin is 0.3, which changes nothing: margin.class_margins is minmax, and "
            "would have to be none",
        ),
        (
            *(PhaseConfig, {"margin.m1": 2.0}),
            "margin.m1 is 2.0, which changes nothing: margin.name is arcface, and would have to "
            "be combined or sphereface",
        ),
        (PhaseConfig, {"margin.elastic_std": 1.0, "margin.name": "elasticface-cos"}, ""),
        (PhaseConfig, {"margin.scale": 3.0, "margin.name": "softmax"}, "anything but softmax or"),
        (PhaseConfig, {"margin.grow": "log", "margin.name": "softmax"}, "anything but softmax"),
        (PhaseConfig, {"margin.scale": 3.0, "margin.weight": 0.0}, "margin.weight is 0.0, and"),
        (PhaseConfig, {"pairs.memory": 3}, "pairs.name is none, and would have to be set"),
        (PhaseConfig, {"pairs.memory": 3, "pairs.name": "contrastive"}, ""),
        (PhaseConfig, {"train.head_epochs": 1, "backbone.trainable_blocks": 0}, "anything but 0"),
        (PhaseConfig, {"train.validate_reranked": True}, "rerank is (), and would have to be set"),
        (PhaseConfig, {"embedding.decoder": "cpu"}, "it is of earlier versions"),
        (ClipConfig, {"text.buckets": 3}, ""),
        # The rate is of both towers: that of texts may learn alone.
        (
            ClipConfig,
            {
                "optim.backbone_lr_ratio": 1.0,
                "backbone.trainable_blocks": 0,
                "text.trainable_blocks": 0,
                "text.train_embeddings": True,
            },
            "",
        ),
        (
            ClipConfig,
            {
                "optim.backbone_lr_ratio": 1.0,
                "backbone.trainable_blocks": 0,
                "text.trainable_blocks": 0,
                "text.train_embeddings": False,
            },
            "anything but 0",
        ),
        (ClipConfig, {"text.buckets": 3, "text.towers": ("use",)}, "text.towers is ('use',), and"),
    ],
)
def test_a_key_is_said_where_its_condition_fails(
    root: Any, settings: dict[str, Any], said: str
) -> None:
    config = root()
    for key, value in settings.items():
        config = with_key(config, key, value)
    sentences = [line for line in unused(config) if line.startswith(f"{next(iter(settings))} is ")]
    assert len(sentences) == bool(said)
    assert said in "".join(sentences)


def test_a_default_that_is_typed_counts_as_set() -> None:
    assert [line.partition(" is ")[0] for line in unused(PhaseConfig(), {"margin.m1"})] == [
        "margin.m1"
    ]
