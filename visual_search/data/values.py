"""Ids, labels and texts by their value: one rule for tables, JSON, folders, and requests.

docs/data.md has the rule for users.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NO_VALUE = frozenset({"", "nan", "NaN", "NAN", "<NA>", "None", "null", "NULL"}) | {
    *("#N/A", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!")
}
"""What spreadsheets and pandas write where there is nothing."""
_SHORTENED = re.compile(r"-?[0-9](?:\.[0-9]+)?E\+[0-9]{2,}")


def value_of(cell: str) -> str:
    """An id or a label as it is compared: stripped, composed (Unicode NFC), `12.0` as `12`.

    Leading zeros stay: `012` may be a name.
    :func:`visual_search.data.tables.compared` drops them where there are numbers alone.
    """
    text = unicodedata.normalize("NFC", cell.strip())
    whole = re.fullmatch(r"(-?[0-9]+)\.0*", text)
    return whole[1] if whole else text


def fault_of(cell: str) -> str:
    """What to write in place of what is no id and no label; empty for one that is."""
    text = cell.strip()
    if text in NO_VALUE:
        return "it must not be empty"
    if _SHORTENED.fullmatch(text):
        return "write all its digits: a spreadsheet has shortened it, and others to the same"
    return ""


def id_of(value: object) -> str:
    """An id out of JSON, which is a text or a whole number.

    Raises:
        ValueError: for what is none, with what to write.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not (whole or isinstance(value, str)):
        raise ValueError("write a text or a whole number")
    if fault := fault_of(str(value)):
        raise ValueError(fault)
    return value_of(str(value))


def in_small_letters(texts: Sequence[str]) -> list[str]:
    """As queries are mostly typed: names of products would else train what is never asked.

    Letters are composed (Unicode NFC), as most tokenizers know no others. Texts that are equal so
    are one.
    """
    return [unicodedata.normalize("NFC", text.strip()).lower() for text in texts]


def twins(cells: pd.Series, file: Path) -> list[str]:
    """Pairs of values that look alike, in words; the index of the cells says their lines.

    Letter case, spaces, forms of a letter, what cannot be seen, and leading zeros tell them apart.
    """
    first: dict[str, tuple[str, object]] = {}
    found: list[str] = []
    for line, cell in cells.drop_duplicates().items():
        seen = "".join(c for c in unicodedata.normalize("NFKC", cell) if c.isprintable())
        name = re.sub(r"^0+(?=[0-9]+$)", "", " ".join(seen.split()).casefold())
        other, before = first.setdefault(name, (cell, line))
        if other != cell:
            found.append(f"{other!r} (line {before}) and {cell!r} (line {line}) of {file}")
    return found
