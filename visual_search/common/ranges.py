"""Numbers of a configuration and what they may be: annotations of dataclass fields, checked here.

`head_lr: Amount = 3e-4` is a float of 0 or more to every reader, and out of its range a sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from visual_search.common.errors import UserError
from visual_search.common.keys import keys_of, type_hints

Number = TypeVar("Number", int, float)
Made = TypeVar("Made")

LARGEST = 1e9
"""Beyond it nothing makes sense, and nothing fits into memory; few numbers are allowed more."""


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number may be; neither infinite nor no number."""

    low: float = -LARGEST
    high: float = LARGEST
    above: bool = False
    """Whether `low` itself is left out."""
    below: bool = False
    """Whether `high` itself is left out."""

    def __contains__(self, value: float) -> bool:
        is_high = value > self.low if self.above else value >= self.low
        is_low = value < self.high if self.below else value <= self.high
        return is_high and is_low

    def __repr__(self) -> str:
        """As a sentence says it and --help shows it."""
        end = f"{self.high:,.0f}" if self.high >= 10_000 else f"{self.high:.4g}"
        high = f"{'below' if self.below else 'at most'} {end}"
        if self.low == -LARGEST:
            return "any number" if self.high == LARGEST else high
        if self.high == LARGEST:
            return f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        if self.above or self.below:
            return f"{f'above {self.low:g}' if self.above else f'{self.low:g} or more'}, {high}"
        return f"{self.low:g} to {end}"

    def words_for(self, value: float) -> str:
        """What it must be instead of `value`; of one beyond all measure, the measure, too."""
        measure = f", {LARGEST:,.0f} at the most" if abs(value) > LARGEST else ""
        return f"{self!r}{measure if LARGEST in (-self.low, self.high) else ''}"


Amount = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1)]
ShareBelow1 = Annotated[float, Range(0, 1, below=True)]
ShareAbove0 = Annotated[float, Range(0, 1, above=True)]
Angle = Annotated[float, Range(0, math.pi)]
Count = Annotated[int, Range(0)]
CountFrom1 = Annotated[int, Range(1)]
CountOrAll = Annotated[int, Range(-1)]
Batch = Annotated[int, Range(1, 1_000_000)]
Workers = Annotated[int, Range(0, 1024)]
Width = Annotated[int, Range(0, 65_536)]
WidthFrom1 = Annotated[int, Range(1, 65_536)]
Side = Annotated[int, Range(1, 4096)]
SideOr0 = Annotated[int, Range(0, 4096)]
Seed = Annotated[int, Range(0, 2**32 - 1)]


def whole_number(low: int, high: float = LARGEST) -> Callable[[str], int]:
    """The `type` of an option that is a whole number from `low` to `high`."""
    return _option(int, "whole number", Range(low, high))


def real_number(
    low: float, high: float = LARGEST, *, above: bool = False
) -> Callable[[str], float]:
    """The `type` of an option that is a number from `low` to `high`; `above` leaves out `low`."""
    return _option(float, "number", Range(low, high, above))


def _option(kind: Callable[[str], Number], what: str, wanted: Range) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value not in wanted:
            words = wanted if value is None else wanted.words_for(value)
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}, {words}")
        return value

    return read


def from_values(kind: Callable[..., Made], values: Mapping[str, Any], prefix: str) -> Made:
    """A dataclass of numbers, words and tuples of them, from values as JSON and YAML have them.

    Args:
        kind: the dataclass.
        values: by the names of its fields.
        prefix: of the keys in a message, `model.json: `.

    Raises:
        UserError: for an unknown key, a value of another type, a choice that there is not, and a
            number out of its range.
    """
    hints, given = type_hints(kind), dict(values)
    for key, value in values.items():
        if key not in hints:
            known = ", ".join(hints) or "none"
            raise UserError(f"{prefix}{key} is an unknown key; known: {known}")
        wanted, parts = hints[key], [value]
        if get_origin(wanted) is tuple:
            if not isinstance(value, list | tuple):
                raise UserError(f"{prefix}{key} is {value!r}, not a list")
            wanted, parts, given[key] = get_args(wanted)[0], list(value), tuple(value)
        choices = get_args(wanted)
        for part in parts:
            if choices and part not in choices:
                raise UserError(f"{prefix}{key} is {part!r}; it can be {', '.join(choices)}")
            fits = type(part) is wanted or (wanted is float and type(part) is int)
            if not choices and not fits:
                raise UserError(f"{prefix}{key} is {part!r}, not {wanted.__name__}")
    try:
        made = kind(**given)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error
    check_ranges(made, where=lambda key: prefix)
    return made


def check_ranges(
    config: Any, prefix: str = "", where: Callable[[str], str] = lambda key: ""
) -> None:
    """Refuse a number of a dataclass, or of one in it, that is out of the range of its field.

    Args:
        config: an instance.
        prefix: of its keys, `dataset.`.
        where: from a dotted key to what the sentence begins with, such as the key's file.

    Raises:
        UserError: naming key, value and range.
    """
    for key in keys_of(config, prefix):
        for part in key.value if isinstance(key.value, tuple | list) else (key.value,):
            for wanted in _ranges(key.hint) or [Range()]:
                if isinstance(part, int | float) and part not in wanted:
                    said = f"{key.name} is {key.value!r}; it must be {wanted.words_for(part)}"
                    raise UserError(where(key.name) + said)


def _ranges(hint: Any) -> list[Range]:
    """Of a field's annotation: its own, or that of a tuple's or an optional's parts."""
    own = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Range)]
    inner = [] if own else [found for part in get_args(hint) for found in _ranges(part)]
    return own or inner[:1]
