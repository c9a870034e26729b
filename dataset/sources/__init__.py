"""Readers of public data sets: one small file each, from its true layout to rows of the table."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataset.sources.base import DataSet

NAMES = [name for _, name, _ in iter_modules(__path__) if name not in ("base", "download")]
"""On the command line; each is a module of this package with its `DATA_SET`."""


def data_set(name: str) -> DataSet:
    """The public data set of a name; only its own module is imported, for they are slow."""
    found: DataSet = import_module(f"dataset.sources.{name}").DATA_SET
    return found
