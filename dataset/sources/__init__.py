"""Readers of public data sets, each from its true layout to rows of the table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataset.sources.base import DataSet

MODULES = {
    "cars": "cars",
    **dict.fromkeys(("cub", "finefood", "food101", "inshop", "rp2k", "sop"), "text_lists"),
    **dict.fromkeys(("glr", "hnm", "products10k", "shopee"), "csv_lists"),
    **dict.fromkeys(("aliproducts", "inaturalist_2021", "met"), "json_lists"),
}
"""Of each data set, by its name on the command line, the module here with it in `DATA_SETS`."""


def data_set(name: str) -> DataSet:
    """The public data set of a name; only its own module is imported, for they are slow."""
    found: DataSet = import_module(f"dataset.sources.{MODULES[name]}").DATA_SETS[name]
    return found
