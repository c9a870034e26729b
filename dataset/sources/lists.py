"""Reading the lists of public data sets line by line, with line numbers in every error."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from visual_search.errors import UserError
from visual_search.images import Box


class Line(NamedTuple):
    """A line of a list."""

    place: str
    """File and line, for errors."""
    fields: list[str]


def split_lines(
    path: Path, fields: int, *, separator: str | None = None, header: str = ""
) -> Iterator[Line]:
    """The lines of a text file, split; empty ones are passed over.

    Args:
        path: UTF-8 text.
        fields: how many each line must have.
        separator: None is any white space.
        header: what the first line must be, its words separated by one space; "": there is none.

    Raises:
        UserError: for another header, a line with another number of fields, another encoding.
    """
    for number, text in _numbered_lines(path):
        if header and number == 1:
            if text.split() != header.split():
                raise UserError(f"{path} line 1 is {text!r}, expected {header!r}")
            continue
        parts = text.split(separator)
        if len(parts) != fields:
            raise UserError(f"{path} line {number} has {len(parts)} fields, not {fields}: {text!r}")
        yield Line(f"{path} line {number}", parts)


def counted_lines(path: Path, header: str) -> Iterator[Line]:
    """The lines of DeepFashion's lists: their number on line 1, the names of the fields on line 2.

    Raises:
        UserError: as :func:`split_lines`, and when there are more or fewer lines than announced.
    """
    announced = count = 0
    fields = header.split()
    number = 0
    for number, text in _numbered_lines(path):
        if number == 1:
            announced = whole_number(text, f"{path} line 1", "the number of photos")
        elif number == 2:
            if text.split() != fields:
                raise UserError(f"{path} line 2 is {text!r}, expected {header!r}")
        else:
            parts = text.split()
            if len(parts) != len(fields):
                raise UserError(
                    f"{path} line {number} has {len(parts)} fields, not {len(fields)}: {text!r}"
                )
            count += 1
            yield Line(f"{path} line {number}", parts)
    if number < 2:
        raise UserError(f"{path} is empty; expected a number, then {header!r}")
    if count != announced:
        raise UserError(
            f"{path} announces {announced} photos on line 1 but lists {count}: get it again"
        )


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as handle:
            for number, text in enumerate(handle, 1):
                if text.strip():
                    yield number, text.strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} line {number + 1} is not UTF-8 text: {error.reason}") from error


class Record(NamedTuple):
    """A row of a csv file."""

    place: str
    """File and line, for errors."""
    values: dict[str, str]


def csv_records(
    path: Path, columns: Sequence[str], may_be_empty: Sequence[str] = ()
) -> Iterator[Record]:
    """The rows of a csv file by the names of its columns, one by one.

    Args:
        path: UTF-8 csv with a header.
        columns: that it must have, filled in every row.
        may_be_empty: that it must have, too.

    Raises:
        UserError: for a missing column, a row with another number of cells or an empty cell in
            one of `columns`, another encoding.
    """
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            names = next(reader, [])
            missing = [name for name in (*columns, *may_be_empty) if name not in names]
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(map(repr, missing))}; it has "
                    f"{', '.join(map(repr, names)) or 'none'}"
                )
            for cells in reader:
                line = reader.line_num
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise UserError(
                        f"{path} line {line} has {len(cells)} cells, but {len(names)} columns"
                    )
                values = dict(zip(names, cells, strict=True))
                empty = [name for name in columns if not values[name].strip()]
                if empty:
                    raise UserError(f"{path} line {line}: {empty[0]} is empty")
                yield Record(f"{path} line {line}", values)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} behind line {line} is not UTF-8 text: {error.reason}") from error
    except csv.Error as error:
        raise UserError(f"{path} line {line + 1} is not readable csv: {error}") from error


def whole_number(text: str, place: str, what: str) -> int:
    """`text` as an int; `60.0` is one too.

    Raises:
        UserError: naming the place and what it should be.
    """
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{place}: {what} is {text!r}, not a whole number")


def pixels(texts: Sequence[str], place: str) -> list[int]:
    """Coordinates, rounded to whole pixels.

    Raises:
        UserError: naming the place, for what is no number.
    """
    try:
        return [round(float(text)) for text in texts]
    except (ValueError, OverflowError):
        raise UserError(f"{place}: the box is {' '.join(texts)!r}, not four numbers") from None


def box_of_corners(corners: Sequence[str], place: str) -> Box:
    """`x, y, w, h` of the corners `x1, y1, x2, y2`.

    One without an area is passed on: the photo is then left out, and listed.

    Raises:
        UserError: see :func:`pixels`.
    """
    x1, y1, x2, y2 = pixels(corners, place)
    return x1, y1, x2 - x1, y2 - y1
