"""Work in numbered pieces, each kept in a file of its own once it is done.

`<parquet>_00007.embeddings` holds the photos of the eighth thousand products. A file is written
under a temporary name and renamed, so it is there whole or not at all: whoever starts again does
the pieces that have no file. The files are Arrow's, nothing in them is executed.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visual_search.downloads import may_pass
from visual_search.errors import UserError
from visual_search.files import written_atomically

SUFFIX = ".embeddings"
FAILED_IN_A_ROW = 20
"""Photos: fewer may be of one server that is down."""

PHOTOS = pa.schema(
    [
        ("asin", pa.string()),
        ("role", pa.string()),  # "product": the shop's photo; "user": a buyer's
        ("url", pa.string()),
        ("vector", pa.list_(pa.float32())),  # of length 1; null where there is none
        ("reason", pa.string()),  # why there is none
    ]
)


def remove_leftovers(path: Path) -> None:
    """Half-written files of a killed process whose names begin as that of `path`."""
    for name in (path.name, f"{path.stem}_mean_"):
        for leftover in path.parent.glob(f".{glob.escape(name)}*.tmp"):
            leftover.unlink(missing_ok=True)


def snapshot_file(parquet: Path, number: int) -> Path:
    """`<parquet>_NNNNN.embeddings`."""
    return parquet.with_name(f"{parquet.name}_{number:05d}{SUFFIX}")


def write_snapshot(path: Path, table: pa.Table, source: str) -> None:
    """Write one piece, atomically.

    Args:
        path: of the file.
        table: its rows.
        source: what the rows were made of; :func:`check_source` compares it later.
    """
    table = table.replace_schema_metadata({"source": source})
    with written_atomically(path) as temporary, pa.OSFile(str(temporary), "wb") as handle:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(handle, table.schema, options=options) as writer:
            writer.write_table(table)


def read_snapshot(path: Path) -> pa.Table:
    """The rows of one piece.

    Raises:
        UserError: when it is no such file.
    """
    try:
        with pa.memory_map(str(path)) as handle:
            return pa.ipc.open_file(handle).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} is not a readable snapshot ({error}): delete it and run the step again"
        ) from error


def snapshot_files(parquet: Path) -> dict[int, Path]:
    """All snapshots of a table that there are, by their numbers."""
    pattern = re.compile(rf"{re.escape(parquet.name)}_(\d{{5,}}){re.escape(SUFFIX)}")
    found = {}
    for path in parquet.parent.glob(f"{glob.escape(parquet.name)}_*{SUFFIX}"):
        if match := pattern.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def source_of(path: Path, advice: str = "delete it and run the step again") -> str:
    """What a piece was made of, as :func:`write_snapshot` was told.

    Raises:
        UserError: when it is no snapshot; with `advice`.
    """
    try:
        with pa.memory_map(str(path)) as handle:
            metadata = pa.ipc.open_file(handle).schema.metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable snapshot ({error}): {advice}") from error
    return str(metadata.get(b"source", b"").decode())


def check_source(path: Path, source: str, advice: str) -> None:
    """Refuse to go on from a piece that was made of something else.

    Raises:
        UserError: with `advice`.
    """
    if source_of(path, advice) != source:
        raise UserError(f"{path} was made from another input or another model: {advice}")


def keep_of_source(parquet: Path, source: str, count: int) -> None:
    """Delete the snapshots of a table that cannot be gone on from.

    Args:
        parquet: the table.
        source: what those that stay were made of; one that cannot be read does not stay.
        count: there are so many pieces now; those with higher numbers are of an earlier call.
    """
    for number, path in snapshot_files(parquet).items():
        try:
            stays = number < count and source_of(path) == source
        except UserError:
            stays = False
        if not stays:
            path.unlink()


def may_pass_rows(table: pa.Table) -> np.ndarray:
    """Places of the rows that failed for a reason that may have passed, ascending, int64."""
    return np.flatnonzero([may_pass(reason) for reason in table["reason"].to_pylist()])


def with_rows(table: pa.Table, places: np.ndarray, rows: pa.Table) -> pa.Table:
    """`table` with the rows at some places replaced.

    Args:
        table: with all rows.
        places: which are replaced, ascending.
        rows: their new content, in that order.
    """
    order = np.arange(table.num_rows)
    order[places] = table.num_rows + np.arange(len(places))
    return pa.concat_tables([table, rows.select(table.column_names)]).take(pa.array(order))


def while_the_network_works(
    pieces: Generator[tuple[int, pa.Table], None, None], worked: bool, retried: Collection[int] = ()
) -> Iterator[tuple[int, pa.Table]]:
    """The pieces, up to where the network, not the photos, is to blame; those stay undone.

    A piece of a few photos may well fail as a whole, the last one say. It is taken as it is where
    others came, or it would be tried for ever; until one has come, it waits.

    Args:
        pieces: their numbers and rows, with a `reason`; closed at the end.
        worked: whether an earlier call has finished pieces over this network.
        retried: pieces that hold only what has failed before, and may fail again.

    Raises:
        UserError: when :data:`FAILED_IN_A_ROW` photos or more, all of one piece or of several that
            came one after the other, failed for a reason that may pass; or everything did.
    """
    waiting: list[tuple[int, pa.Table]] = []
    failed = 0
    with closing(pieces):
        for number, table in pieces:
            all_failed = len(may_pass_rows(table)) == table.num_rows > 0
            if all_failed and number not in retried:
                failed += table.num_rows
                waiting.append((number, table))
                if failed >= FAILED_IN_A_ROW:
                    break
            else:
                failed = 0
                worked |= not all_failed and table.num_rows > 0
                yield number, table
            if worked:
                yield from waiting
                waiting.clear()
    if waiting:
        number, table = waiting[-1]
        raise UserError(
            f"not one of the {table.num_rows} photos of piece {number} could be downloaded "
            f"({table['reason'][0].as_py()}): is the network down? The same command goes on here"
        )


def fingerprint(*parts: str | bytes) -> str:
    """A short text that differs where any of the parts does."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_rows(path: Path, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` of a parquet file; only the row groups that hold them are read."""
    file = pq.ParquetFile(path)
    first = 0
    for number in range(file.num_row_groups):
        rows = file.metadata.row_group(number).num_rows
        low, high = max(start, first), min(stop, first + rows)
        if low < high:
            table = file.read_row_group(number, columns=columns).slice(low - first, high - low)
            yield from table.to_batches()
        first += rows
        if first >= stop:
            return


def row_count(path: Path, columns: Iterable[str]) -> int:
    """Rows of a parquet file that must have `columns`.

    Raises:
        UserError: when it is missing, no parquet file, or without one of them.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from error
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(file.schema_arrow.names)}"
        )
    return int(file.metadata.num_rows)


def value_count(path: Path, columns: Iterable[str]) -> int:
    """About how many values the list columns of a parquet file hold; an empty list counts as one.

    Only the file's footer is read.
    """
    metadata = pq.ParquetFile(path).metadata
    wanted, total = set(columns), 0
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            if chunk.path_in_schema.partition(".")[0] in wanted:
                total += chunk.num_values
    return total
