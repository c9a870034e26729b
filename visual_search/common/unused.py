"""Keys of a configuration that nothing reads where others are as they are: said, never silent.

`momentum: Annotated[float, When("name", "sgd")]` counts where the key `name` beside it is sgd. On
the field that holds a whole part, a condition is of all keys of the part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_type_hints


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
    for key, value, default, condition, other in _failing(config, config, "", ()):
        if key in typed or value != default:
            why = f"{other} is {_said(_at(config, other)) or 'empty'}, and would have to be"
            reason = f"{why} {condition}" if other else "it is of earlier versions"
            sentences.append(f"{key} is {_said(value)}, which changes nothing: {reason}")
    return sentences


Place = tuple[When, str]
"""A condition, and the dotted prefix of the keys beside the field it stands on."""


def _failing(
    root: Any, part: Any, prefix: str, inherited: tuple[Place, ...]
) -> Iterator[tuple[str, Any, Any, When, str]]:
    """Key, value, default, the condition that does not hold, and the key that it is about."""
    hints = get_type_hints(type(part), include_extras=True)
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), f"{prefix}{field.name}"
        notes = getattr(hints[field.name], "__metadata__", ())
        own = [(note, prefix) for note in notes if isinstance(note, When)]
        if dataclasses.is_dataclass(value):
            yield from _failing(root, value, f"{key}.", (*inherited, *own))
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for number, entry in enumerate(value):
                yield from _failing(root, entry, f"{key}.{number}.", (*inherited, *own))
        else:
            for condition, beside in (*inherited, *own):
                dotted = "." in condition.key
                other = condition.key.lstrip(".") if dotted else f"{beside}{condition.key}"
                if other == key or (condition.only and field.name not in condition.only):
                    continue
                counts = condition.key and condition.holds(_at(root, other))
                if not counts and not any(_is_on(root, name) for name in condition.also):
                    default = _default(field)
                    yield key, value, default, condition, condition.key and other
                    break


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _is_on(root: Any, key: str) -> bool:
    try:
        return When(key).holds(_at(root, key))
    except AttributeError:  # a phase of another kind
        return False


def _at(root: Any, key: str) -> Any:
    for name in key.split(".") if key else ():
        root = root[int(name)] if name.isdecimal() else getattr(root, name)
    return root
