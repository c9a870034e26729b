"""No key that is set is ignored without a word: for every key of every configuration."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from visual_search.common.unused import Unless, When, unused
from visual_search.config import MarginConfig, PhaseConfig, TableConfig
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


HINTS = {
    root: {key: (hint, default) for key, hint, default in keys_of(root)}
    for root in (PhaseConfig, ClipConfig)
}
CASES = [
    pytest.param(root, key, hint, default, id=f"{root.__name__}.{key}")
    for root, keys in HINTS.items()
    for key, (hint, default) in keys.items()
]


def conditions(root: Any, key: str) -> list[tuple[When, str]]:
    """Those on the key and on the parts it lies in, each with the key that it is about."""
    found: list[tuple[When, str]] = []
    kind, prefix = root, ""
    *_, name = key.split(".")
    for step in key.split("."):
        hint = get_type_hints(kind, include_extras=True)[step]
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, When) and (not note.only or name in note.only):
                other = note.key.lstrip(".") if "." in note.key else f"{prefix}{note.key}"
                found += [(note, other)] if other != key else []
        kind, prefix = plain(hint), f"{prefix}{step}."
    return found


@pytest.mark.parametrize(("root", "key", "hint", "default"), CASES)
def test_each_key_is_said_where_its_condition_fails(
    root: Any, key: str, hint: Any, default: Any
) -> None:
    set_here = with_key(root(), key, another(key, hint, default))
    hints = HINTS[root]
    wanted = conditions(root, key)
    # Where every condition holds, nothing is said of the key …
    for other in {other for condition, other in wanted if condition.key}:
        of_it = [condition for condition, about in wanted if about == other]
        set_here = with_key(set_here, other, choose(of_it, *hints[other]))
    told = [line for line in unused(set_here) if line.startswith(f"{key} is ")]
    assert bool(told) == any(not condition.key for condition, _ in wanted)
    # … and where one fails, it is said, and why; typed on the command line, its default too.
    for condition, other in wanted:
        if condition.key:
            failing = with_key(set_here, other, choose([condition], *hints[other], holds=False))
            sentences = [line for line in unused(failing) if line.startswith(f"{key} is ")]
            assert len(sentences) == 1
            assert other in sentences[0]
            typed = unused(with_key(failing, key, default), {key})
            assert any(line.startswith(f"{key} is ") for line in typed)


def choose(conditions: list[When], hint: Any, default: Any, holds: bool = True) -> Any:
    """A value of another key with which all conditions hold, or all fail."""
    values = [value for condition in conditions for value in condition.values]
    named = [f"{value}x" if str(value)[-1:] in "/-" else value for value in values]
    plain_choices = [default, *get_args(plain(hint)), *named, "", "x", False, True, 0, 1, 0.5]
    choices = [default, *((c,) for c in ["none", *named])] if default == ("hashed",) else []
    for choice in choices or [*plain_choices, ("x",), ()]:
        same = isinstance(choice, type(default)) or (type(default), choice) == (float, 0)
        if (same or default is None) and all(c.holds(choice) == holds for c in conditions):
            return choice
    raise AssertionError((conditions, default))


def test_the_sentence_says_what_would_have_to_be() -> None:
    config = PhaseConfig(margin=MarginConfig(margin=0.3, class_margins="minmax", m1=2.0))
    assert unused(config) == [
        "margin.margin is 0.3, which changes nothing: margin.class_margins is minmax, and would "
        "have to be none",
        "margin.m1 is 2.0, which changes nothing: margin.name is arcface, and would have to be "
        "combined or sphereface",
    ]
    assert Unless("a", "b", "c").holds("d")
