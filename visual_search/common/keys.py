"""The keys of a configuration: the fields of its dataclasses by dotted names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_type_hints

Notes = tuple[tuple[Any, str], ...]
"""Of `Annotated`, each with the prefix of the keys beside the field that it stands on."""


@functools.cache
def type_hints(kind: Any, include_extras: bool = False) -> Mapping[str, Any]:
    """`typing.get_type_hints` of a class, once: it compiles every annotation anew."""
    return get_type_hints(kind, include_extras=include_extras)


class Key(NamedTuple):
    """A field that holds a value, not a part with fields of its own."""

    name: str
    """Dotted, from the root; an entry of a list of parts by its number."""
    value: Any
    default: Any
    hint: Any
    notes: Notes
    """Those of the parts that it is in, then its own."""


def keys_of(config: Any, prefix: str = "", notes: Notes = ()) -> Iterator[Key]:
    """Every key of a dataclass's instance and of those in it, in the order of the fields.

    Args:
        config: the instance.
        prefix: of the names, `dataset.`.
        notes: of the parts that it is in.
    """
    kind: Any = type(config)
    hints = type_hints(kind, include_extras=True)
    for field in dataclasses.fields(config):
        value, hint, name = getattr(config, field.name), hints[field.name], prefix + field.name
        beside = *notes, *((note, prefix) for note in getattr(hint, "__metadata__", ()))
        if dataclasses.is_dataclass(value):
            yield from keys_of(value, f"{name}.", beside)
        elif isinstance(value, tuple | list) and value and dataclasses.is_dataclass(value[0]):
            for number, entry in enumerate(value):
                yield from keys_of(entry, f"{name}.{number}.", beside)
        else:
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            yield Key(name, value, default, hint, beside)
