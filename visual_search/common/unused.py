"""Keys of a configuration that nothing reads where others are as they are: said, never silent.

`momentum: Annotated[float, When("name", "sgd")]` counts where the key `name` beside it is sgd. On
the field that holds a whole part, a condition is of all keys of the part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from visual_search.common.keys import Key, keys_of


class When:
    """A key counts where another one has one of these values; without values, where it is on."""

    def __init__(
        self, key: str, *values: Any, only: Sequence[str] = (), also: Sequence[str] = ()
    ) -> None:
        """
        Args:
            key: beside this one, or dotted (`.pretrain_model`) from the root; empty: of earlier
                versions.
            values: of that key.
            only: on a part, the keys of it that this is about; none: all but `key` itself.
            also: dotted keys; where the configuration has one of them and it is on, that does, too.
        """
        self.key, self.values, self.only, self.also = key, values, tuple(only), tuple(also)

    def holds(self, value: Any) -> bool:
        """Whether it does, the other key being `value`."""
        if not self.values:
            return value not in (0, None, False, "", "none", ())
        several = value if isinstance(value, tuple) else (value,)
        return any(part == wanted or _begins(part, wanted) for part in several
                   for wanted in self.values)  # fmt: skip

    def __str__(self) -> str:
        """What `key` would have to be."""
        words = " or ".join(_said(value) for value in self.values)
        return words or "set"


class Unless(When):
    """A key counts where another one has none of these values; without values, where it is off."""

    def holds(self, value: Any) -> bool:
        """See :class:`When`."""
        return not super().holds(value)

    def __str__(self) -> str:
        """See :class:`When`."""
        return f"anything but {super().__str__()}" if self.values else "off"


def _begins(value: Any, wanted: Any) -> bool:
    """`open_clip/` and `elasticface-` stand for all names that begin so."""
    return isinstance(wanted, str) and wanted.endswith(("/", "-")) and str(value).startswith(wanted)


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def unused(config: Any, typed: Collection[str] = ()) -> list[str]:
    """A sentence for each key that was set and has no effect.

    Args:
        config: an instance of a configuration's dataclass.
        typed: dotted keys that the user typed; of the others, those count as set that differ from
            their defaults.
    """
    sentences = []
    for key in keys_of(config):
        condition, other = _failing(config, key)
        if condition and (key.name in typed or key.value != key.default):
            why = f"{other} is {_said(_at(config, other)) or 'empty'}, and would have to be"
            reason = f"{why} {condition}" if other else "it is of earlier versions"
            sentences.append(f"{key.name} is {_said(key.value)}, which changes nothing: {reason}")
    return sentences


def _failing(config: Any, key: Key) -> tuple[When | None, str]:
    """The first condition of a key that does not hold, and the key that it is about."""
    for condition, beside in key.notes:
        if not isinstance(condition, When):
            continue
        dotted = "." in condition.key
        other = condition.key.lstrip(".") if dotted else f"{beside}{condition.key}"
        is_about = not condition.only or key.name.rpartition(".")[2] in condition.only
        if other == key.name or not is_about:
            continue
        counts = condition.key and condition.holds(_at(config, other))
        if not counts and not any(_is_on(config, name) for name in condition.also):
            return condition, condition.key and other
    return None, ""


def _is_on(root: Any, key: str) -> bool:
    try:
        return When(key).holds(_at(root, key))
    except AttributeError:  # a phase of another kind
        return False


def _at(root: Any, key: str) -> Any:
    for name in key.split(".") if key else ():
        root = root[int(name)] if name.isdecimal() else getattr(root, name)
    return root
