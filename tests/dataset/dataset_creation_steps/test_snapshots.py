import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from dataset.dataset_creation_steps.snapshots import (
    FAILED_AT_ONCE,
    check_network,
    fingerprint,
    read_rows,
    read_snapshot,
    row_count,
    snapshot_file,
    snapshot_files,
    source_of,
    whole_pieces,
    write_snapshot,
)
from tests.commands import refused


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 10_000))
def test_pieces_are_whole_whatever_the_order(sizes: list[int], seed: int) -> None:
    rows = [(n, place) for n, size in enumerate(sizes) for place in range(size)]
    chance = random.Random(seed)
    chance.shuffle(rows)
    batches = []
    while rows:
        size = chance.randint(1, 5)
        share, rows = rows[:size], rows[size:]
        columns = [pa.array(list(column)) for column in zip(*share, strict=True)]
        batches.append(pa.record_batch(columns, ["piece", "place"]))
    found = dict(whole_pieces(iter(batches), dict(enumerate(sizes))))
    assert {n: table["place"].to_pylist() for n, table in found.items()} == {
        n: list(range(size)) for n, size in enumerate(sizes)
    }


def test_a_snapshot_says_what_it_was_made_of(tmp_path: Path) -> None:
    parquet = tmp_path / "x[1].parquet"
    table = pa.table({"reason": ["gone", None]})
    for number, source in enumerate(["new", "old"]):
        write_snapshot(snapshot_file(parquet, number), table, source)
    snapshot_file(parquet, 2).write_bytes(b"not arrow")
    write_snapshot(snapshot_file(tmp_path / "y.parquet", 1), table, "old")
    (tmp_path / "x[1].parquet_mean.embeddings").touch()
    assert read_snapshot(snapshot_file(parquet, 0)).to_pylist() == table.to_pylist()
    found = {number: source_of(path) for number, path in snapshot_files(parquet).items()}
    assert found == {0: "new", 1: "old", 2: None}


def test_a_network_that_is_down_is_told_from_a_small_piece_that_is() -> None:
    def failed(count: int, reason: str = "HTTP 503 (attempt 4 of 4)") -> pa.Table:
        return pa.table({"reason": [reason] * count})

    many, gone = failed(FAILED_AT_ONCE), failed(FAILED_AT_ONCE, "HTTP 404")
    for table in (failed(FAILED_AT_ONCE - 1), gone, pa.concat_tables([many, gone])):
        check_network(1, table)
    words = f"not one of the {FAILED_AT_ONCE} images of piece 1 .* is the network down"
    refused(words, check_network, 1, many)


@given(st.integers(0, 30), st.integers(0, 30))
def test_any_rows_of_a_parquet_file(start: int, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.parquet"
        pq.write_table(pa.table({"n": list(range(25)), "m": ["x"] * 25}), path, row_group_size=7)
        found = read_rows(path, start, start + length, ["n"])
        assert found.to_pydict() == {"n": list(range(25))[start : start + length]}


def test_columns_that_a_parquet_file_lacks_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"b": [1]}), tmp_path / "x.parquet")
    refused("has no column 'a'; it has b", row_count, tmp_path / "x.parquet", ["a"])


def test_fingerprints_know_where_a_part_ends() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("ab", "c") == fingerprint(b"ab", "c")
