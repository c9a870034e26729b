"""The public data sets by their names."""

from __future__ import annotations

from dataset.sources import (
    aliproducts,
    cars,
    cub,
    finefood,
    food101,
    glr,
    hnm,
    inaturalist_2021,
    inshop,
    met,
    products10k,
    rp2k,
    shopee,
    sop,
)
from dataset.sources.base import DataSet

DATA_SETS: dict[str, DataSet] = {
    module.DATA_SET.name: module.DATA_SET
    for module in (
        sop,
        cars,
        cub,
        inshop,
        aliproducts,
        rp2k,
        products10k,
        met,
        hnm,
        finefood,
        shopee,
        inaturalist_2021,
        food101,
        glr,
    )
}
