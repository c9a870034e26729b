"""Work in numbered pieces, each kept in a file of its own once it is done.

`<parquet>_00007.embeddings` holds the photos of the eighth thousand products. A file is written
under a temporary name and renamed, so it is there whole or not at all: whoever starts again does
the pieces that have no file. The files are Arrow's, nothing in them is executed.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from daft.io.pushdowns import Pushdowns
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch
from daft.schema import Schema

from dataset.downloads import may_pass
from visual_search.common.errors import UserError
from visual_search.common.files import written_atomically

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


def write_pieces(
    pieces: Generator[tuple[int, pa.Table], None, None],
    worked: bool,
    retried: Collection[int],
    *,
    file_of: Callable[[int], Path],
    columns: Sequence[str],
    source: str,
    advance: Callable[[], object],
) -> None:
    """Write each piece as it comes; of a retried one, the rows that were tried again change.

    Args:
        pieces, worked, retried: see :func:`while_the_network_works`.
        file_of: the file of a piece.
        columns: of the files.
        source: what the pieces are made of; see :func:`write_snapshot`.
        advance: called after each.

    Raises:
        UserError: when the network seems to be down.
    """
    for number, rows in while_the_network_works(pieces, worked, retried):
        path = file_of(number)
        if number in retried:
            old = read_snapshot(path)
            rows = with_rows(old, may_pass_rows(old), rows)
        write_snapshot(path, rows.select(columns), source)
        advance()


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


PIECE_COLUMNS = [("piece", pa.int64()), ("rows", pa.int64()), ("place", pa.int64())]
"""Which piece a row belongs to, how many rows that has, and where in it the row stands."""

WAVE_PIECES = 8


@dataclass(frozen=True)
class PieceReader:
    """How the rows of a piece are read, wherever a worker needs them."""

    columns: tuple[tuple[str, pa.DataType], ...]
    read: Callable[[int], pa.Table]
    """The columns of piece number so-and-so. It is sent to the workers: a function of a module,
    or `functools.partial` of one."""

    @property
    def schema(self) -> pa.Schema:
        """Of the source: the columns of the piece, then its own."""
        return pa.schema([*PIECE_COLUMNS, *self.columns])


class Pieces(DataSource):
    """The rows of some pieces."""

    def __init__(self, reader: PieceReader, numbers: Sequence[int], tasks: int) -> None:
        """
        Args:
            reader: of a piece.
            numbers: of the pieces.
            tasks: into how many tasks they go, each with its pieces one after the other.
        """
        self.reader, self.numbers, self.tasks = reader, list(numbers), tasks

    @property
    def name(self) -> str:
        return "pieces"

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(self.reader.schema)

    async def get_tasks(self, pushdowns: Pushdowns) -> AsyncIterator[DataSourceTask]:
        """One task for each share of the pieces."""
        for first in range(min(self.tasks, len(self.numbers))):
            yield _Share(self.reader, self.numbers[first :: self.tasks])


class _Share(DataSourceTask):
    def __init__(self, reader: PieceReader, numbers: Sequence[int]) -> None:
        self.reader, self.numbers = reader, numbers

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(self.reader.schema)

    async def read(self) -> AsyncIterator[RecordBatch]:
        """The rows, piece by piece."""
        for number in self.numbers:
            for batch in _numbered(self.reader, number):
                yield RecordBatch.from_arrow_record_batches([batch], self.reader.schema)


def _numbered(reader: PieceReader, number: int) -> Iterator[pa.RecordBatch]:
    table = reader.read(number)
    rows = table.num_rows
    own = [pa.array([number] * rows), pa.array([rows] * rows), pa.array(range(rows))]
    columns = [*own, *(table[name] for name, _ in reader.columns)]
    return iter(pa.Table.from_arrays(columns, schema=reader.schema).to_batches(max_chunksize=256))


def waves(numbers: Sequence[int], distributed: bool) -> Iterator[tuple[list[int], int]]:
    """Pieces that go into one query, and the tasks to read them in.

    On one machine the engine reads a whole source before it works on it, so it gets few pieces at
    a time, in one task that reads them in their order. On a cluster each piece is a task, and the
    workers take as many as they have hands.
    """
    if distributed:
        yield list(numbers), len(numbers)
        return
    for start in range(0, len(numbers), WAVE_PIECES):
        yield list(numbers[start : start + WAVE_PIECES]), 1


def whole_pieces(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """Collect rows, in whatever order they come, into complete pieces.

    Yields:
        The number of a piece as soon as its last row has come, and its rows in their order.
    """
    waiting: dict[int, list[pa.Table]] = {}
    missing: dict[int, int] = {}
    for batch in batches:
        table = pa.Table.from_batches([batch])
        numbers = table["piece"].to_numpy()
        for number in dict.fromkeys(numbers.tolist()):
            rows = table.filter(pa.array(numbers == number))
            waiting.setdefault(number, []).append(rows)
            left = missing.setdefault(number, rows["rows"][0].as_py()) - rows.num_rows
            missing[number] = left
            if left == 0:
                yield number, pa.concat_tables(waiting.pop(number)).sort_by("place")
