"""No key that is set is ignored without a word; each key: test_keys_change_the_training.py."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from visual_search.common.unused import unused
from visual_search.config import PhaseConfig, TableConfig
from visual_search.text.config import ClipConfig


def keys_of(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, annotation and default of each plain field."""
    hints = get_type_hints(kind, include_extras=True)
    made = kind("table.csv") if kind is TableConfig else kind()
    for field in dataclasses.fields(kind):
        default = getattr(made, field.name)
        if dataclasses.is_dataclass(default):
            yield from keys_of(type(default), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name], default


def with_key(config: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    inner = with_key(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})


def plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


OTHERS: dict[str, Any] = {
    "betas": (0.5, 0.9), "milestones": (0.2, 0.3), "nested": (4,), "trackers": ("tensorboard",),
    "towers": ("use",), "mean": (0.1, 0.2, 0.3), "std": (0.1, 0.2, 0.3), "power": -0.5,
    "tables": (TableConfig("table.csv"),), "pretrain_model": "runs/other", "momentum": 0.5,
    "layers": (1,), "layer_weights": (0.5,), "views": ("letterbox",), "view_sizes": (40,),
}  # fmt: skip


def another(key: str, hint: Any, default: Any) -> Any:
    """A value that is allowed and not the default."""
    name, hint = key.rpartition(".")[2], plain(hint)
    if name in OTHERS:
        return OTHERS[name]
    if get_origin(hint) is Literal:
        # Of a key with a single choice, one of earlier versions: nothing reads it.
        return next((choice for choice in reversed(get_args(hint)) if choice != default), "gone")
    if isinstance(default, bool):
        return not default
    if isinstance(default, float):
        return default / 2 if default else 0.5
    if isinstance(default, int):
        return default + 1
    if isinstance(default, tuple):
        inner = plain(get_args(hint)[0])
        return (another("", inner, {int: 0, float: 0.0}.get(inner, "x")),)
    return f"{default}_other"


CASES = [
    pytest.param(root, key, hint, default, id=f"{root.__name__}.{key}")
    for root in (PhaseConfig, ClipConfig)
    for key, hint, default in keys_of(root)
]


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
