"""The Met dataset: visitors' photos of exhibits, among images of other things (Ypsilantis 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from dataset.sources.base import DataSet, Download, Files, read_json
from visual_search.data.dataset_info import InfoRow

PARTS = ("val", "test")
MIRROR = "http://ptak.felk.cvut.cz/met/dataset"


class _Exhibit(msgspec.Struct, gc=False):
    id: int | str
    path: str


class _Query(msgspec.Struct, gc=False):
    path: str
    MET_id: int | str | None = None


def read(files: Files) -> Iterator[InfoRow]:
    """The exhibits, which train and are what the queries are searched among; then the queries.

    A query without an exhibit (a distractor) gets a label that no other image has, so that
    nothing is right for it. Distractors whose folder was not downloaded are left out.
    """
    exhibits = files.file("MET_database.json", "mini_MET_database.json")
    for entry in read_json(exhibits, list[_Exhibit]):
        yield InfoRow(files.image(entry.path), str(entry.id), evaluation_status="train")
    for part in (files.part,) if files.part else PARTS:
        for query in read_json(files.file(f"{part}set.json"), list[_Query]):
            if query.MET_id is not None:
                label = str(query.MET_id)
            elif files.has(query.path.partition("/")[0]):
                label = f"no_match/{Path(query.path).with_suffix('')}"
            else:
                continue
            path = files.image(query.path)
            yield InfoRow(path, label, evaluation_status="query", is_test=True)


DATA_SET = DataSet(
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
