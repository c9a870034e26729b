"""Pieces of a parquet file as a source of Daft's: one row for each photo of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from daft.io.pushdowns import Pushdowns
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch
from daft.schema import Schema

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
