"""The Met dataset: visitors' photos of exhibits, among photos of other things (Ypsilantis 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dataset.json_arrays import array_items
from dataset.sources.base import DataSet, Download, Files
from visual_search.dataset_info import InfoRow
from visual_search.errors import UserError

PARTS = ("val", "test")
MIRROR = "http://ptak.felk.cvut.cz/met/dataset"


def read(files: Files) -> Iterator[InfoRow]:
    """The exhibits, which train and are what the queries are searched among; then the queries.

    A query without an exhibit (a distractor) gets a label that no other photo has, so that
    nothing is right for it. Distractors whose folder was not downloaded are left out.
    """
    exhibits = files.file("MET_database.json", "mini_MET_database.json")
    for number, entry in enumerate(array_items(exhibits), 1):
        path = files.photo(_text(entry, "path", exhibits, number))
        label = f"met/{_text(entry, 'id', exhibits, number)}"
        yield InfoRow(path, label, evaluation_status="train")
    for part in (files.part,) if files.part else PARTS:
        yield from _queries(files, files.file(f"{part}set.json"))


def _queries(files: Files, table: Path) -> Iterator[InfoRow]:
    for number, entry in enumerate(array_items(table), 1):
        name = _text(entry, "path", table, number)
        if "MET_id" in entry:
            label = f"met/{entry['MET_id']}"
        elif files.has(name.partition("/")[0]):
            label = f"met/no_match/{Path(name).with_suffix('')}"
        else:
            continue
        yield InfoRow(files.photo(name), label, evaluation_status="query", is_test=True)


def _text(entry: dict, key: str, table: Path, number: int) -> str:
    value = entry.get(key)
    if value is None or value == "":
        raise UserError(f"{table}: entry {number} lacks {key!r}: {entry}")
    return str(value)


DATA_SET = DataSet(
    name="met",
    title="The Met dataset",
    page="http://cmp.felk.cvut.cz/met/",
    layout="MET/, test_met/ and, for the distractors, test_other/ and test_noart/; and "
    "MET_database.json, valset.json and testset.json (ground_truth.tar.gz)",
    read=read,
    columns=("evaluation_status",),
    parts=PARTS,
    archives={
        "MET.tar.gz": "MET",
        "ground_truth.tar.gz": "testset.json",
        "test_met.tar.gz": "test_met",
        "test_other.tar.gz": "test_other",
        "test_noart.tar.gz": "test_noart",
    },
    downloads=(
        Download(f"{MIRROR}/ground_truth.tar.gz"),
        Download(
            f"{MIRROR}/test_met.tar.gz",
            size=34_048_842,
            sha256="2bc9b2e906d5fc69c4c136860b42604ef867b69ada10f1e08aa49175cbe08a35",
        ),
        Download(f"{MIRROR}/test_other.tar.gz"),
        Download(f"{MIRROR}/test_noart.tar.gz"),
        Download(f"{MIRROR}/MET.tar.gz"),
    ),
)
