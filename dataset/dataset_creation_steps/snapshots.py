"""Work in numbered pieces, each kept in a file of its own once it is done.

`<parquet>_00007.embeddings` holds the images of the eighth thousand products. A file is written
under a temporary name and renamed, so it is there whole or not at all: whoever starts again does
the pieces that have no file. The files are Arrow's, nothing in them is executed.
"""

from __future__ import annotations

import glob
import hashlib
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.downloads import TRIED, may_pass
from visual_search.common.errors import UserError
from visual_search.common.files import check_regular, written_atomically
from visual_search.common.progress import progress_bar

SUFFIX = ".embeddings"
FAILED_AT_ONCE = 20
"""Images: fewer may be of one server that is down."""
WAVE_PIECES = 8
CLUSTER_WAVE_PIECES = 64
"""Pieces in one query of the engine, which takes all of its input before it works."""

IMAGES = pa.schema(
    [
        ("asin", pa.string()),
        ("role", pa.string()),  # "product": the shop's image; "user": a buyer's
        ("url", pa.string()),
        ("vector", pa.list_(pa.float32())),  # of length 1; null where there is none
        ("reason", pa.string()),  # why there is none
    ]
)


def fingerprint(*parts: str | bytes) -> str:
    """A short text that differs where any of the parts does."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def keys(texts: Sequence[str]) -> np.ndarray:
    """A number of 64 bits for each text, `(n,)`, uint64, alike in every run.

    Of five million texts, two different ones share a number with a chance of one in a million.
    """
    return pd.util.hash_array(np.array(texts, dtype=object), categorize=False)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Half-written files of a killed process whose names begin as one of `names`."""
    for name in names:
        for leftover in folder.glob(f".{glob.escape(name)}*.tmp"):
            leftover.unlink(missing_ok=True)


def snapshot_file(parquet: Path, number: int) -> Path:
    """`<parquet>_NNNNN.embeddings`."""
    return parquet.with_name(f"{parquet.name}_{number:05d}{SUFFIX}")


def snapshot_files(parquet: Path) -> dict[int, Path]:
    """All snapshots of a table that there are, by their numbers."""
    pattern = re.compile(rf"{re.escape(parquet.name)}_(\d{{5,}}){re.escape(SUFFIX)}")
    found = {}
    for path in parquet.parent.glob(f"{glob.escape(parquet.name)}_*{SUFFIX}"):
        if match := pattern.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def write_snapshot(path: Path, table: pa.Table, source: str) -> None:
    """Write one piece, atomically; :func:`source_of` says later what it was made of."""
    table = table.replace_schema_metadata({"source": source})
    with written_atomically(path) as temporary, pa.OSFile(str(temporary), "wb") as handle:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(handle, table.schema, options=options) as writer:
            writer.write_table(table)


def read_snapshot(path: Path) -> pa.Table:
    """The rows of one piece; a UserError for what is none."""
    try:
        with pa.memory_map(str(path)) as handle:
            return pa.ipc.open_file(handle).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} is not a readable snapshot ({error}): delete it and run the step again"
        ) from error


def source_of(path: Path) -> str | None:
    """What a piece was made of, as :func:`write_snapshot` was told; None for what is no piece."""
    try:
        with pa.memory_map(str(path)) as handle:
            metadata = pa.ipc.open_file(handle).schema.metadata or {}
    except (pa.ArrowInvalid, OSError):
        return None
    return str(metadata.get(b"source", b"").decode())


def split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that failed and are worth another try, and the others."""
    passing = [may_pass(reason) for reason in table["reason"].to_pylist()]
    chosen = pa.array(passing, pa.bool_())
    return table.filter(chosen), table.filter(pc.invert(chosen))


_stopped = threading.Event()
"""Set where nobody waits for the rest of a query, which the engine runs to its end, be it hours."""


def is_stopped() -> bool:
    """Whether nobody takes the results of the query any more: its stages need not work."""
    return _stopped.is_set()


def through_stages(
    label: str,
    numbers: Sequence[int],
    rows_of: Callable[[int], pa.Table],
    stages: Callable[[Any], Any],
    distributed: bool,
    retried: Collection[int] = (),
) -> Iterator[tuple[int, pa.Table]]:
    """Send the rows of pieces through the engine; a piece comes as soon as its last row has.

    Args:
        label: of the progress bar.
        numbers: of the pieces.
        rows_of: the rows of piece number so-and-so, at least one.
        stages: adds columns to a frame of the engine's, `reason` among them.
        distributed: whether each piece may be worked on by another machine.
        retried: pieces of what has failed before, and may fail again.

    Raises:
        UserError: as :func:`check_network`.
    """
    import daft

    wave = CLUSTER_WAVE_PIECES if distributed else WAVE_PIECES
    with progress_bar(label, "piece", total=len(numbers)) as bar:
        for start in range(0, len(numbers), wave):
            tables = {number: rows_of(number) for number in numbers[start : start + wave]}
            rows = [
                table.append_column("piece", pa.array([number] * table.num_rows)).append_column(
                    "place", pa.array(range(table.num_rows))
                )
                for number, table in tables.items()
            ]
            if not distributed:  # small enough that a piece is done long before its wave
                rows = [table.slice(at, 256) for table in rows for at in range(0, len(table), 256)]
            batches = stages(daft.from_arrow(rows)).to_arrow_iter(results_buffer_size=None)
            sizes = {number: table.num_rows for number, table in tables.items()}
            _stopped.clear()
            try:
                for number, table in whole_pieces(batches, sizes):
                    if number not in retried:
                        check_network(number, table)
                    yield number, table
                    bar.update()
            except BaseException:  # the caller's, too: before the query is closed
                _stopped.set()
                raise


def whole_pieces(
    batches: Iterator[pa.RecordBatch], sizes: dict[int, int]
) -> Iterator[tuple[int, pa.Table]]:
    """Rows, in whatever order they come, as complete pieces of so many rows."""
    waiting: dict[int, list[pa.Table]] = {}
    missing = dict(sizes)
    for batch in batches:
        table = pa.Table.from_batches([batch])
        numbers = table["piece"].to_numpy()
        for number in dict.fromkeys(numbers.tolist()):
            rows = table.filter(pa.array(numbers == number))
            waiting.setdefault(number, []).append(rows)
            missing[number] -= rows.num_rows
            if missing[number] == 0:
                yield number, pa.concat_tables(waiting.pop(number)).sort_by("place")


def check_network(number: int, table: pa.Table) -> None:
    """Tell where the network, not the images, is to blame.

    A piece of a few images may well fail as a whole, the last one say.

    Raises:
        UserError: when all images of a piece, :data:`FAILED_AT_ONCE` or more, failed for a reason
            that may pass.
    """
    passing = (TRIED in (reason or "") for reason in table["reason"].to_pylist())
    if table.num_rows >= FAILED_AT_ONCE and all(passing):
        raise UserError(
            f"not one of the {table.num_rows} images of piece {number} could be downloaded "
            f"({table['reason'][0].as_py()}): is the network down? The same command goes on here"
        )


def read_rows(path: Path, start: int, stop: int, columns: list[str]) -> pa.Table:
    """Rows `start` to `stop` of a parquet file; only the row groups that hold them are read."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    first, last = np.searchsorted(starts, start, "right") - 1, np.searchsorted(starts[:-1], stop)
    table = file.read_row_groups(range(first, last), columns=columns)
    return table.slice(start - starts[first], stop - start)


def row_count(path: Path, columns: Iterable[str]) -> int:
    """Rows of a parquet file that must have `columns`, or a UserError."""
    try:
        check_regular(path)
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
