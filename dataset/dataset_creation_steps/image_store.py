"""A store of images on disk: planned in pieces, downloaded, each content kept once.

Stages of the engine take and give whole batches, so that it holds only a few batches of images
between them, and the network and the model work at the same time.
"""

from __future__ import annotations

import asyncio
import glob
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from daft import DataType, Series

from dataset.dataset_creation_steps.engine import DownloadConfig, Filling
from dataset.dataset_creation_steps.snapshots import is_stopped, keys, read_snapshot, work_on_pieces
from dataset.downloads import Download, Downloader, extension, image_problem
from visual_search.common.files import write_bytes, written_atomically

FETCH_BATCH = 64
FETCH_BATCHES = 4
"""Fetched at a time, so that one slow image does not hold up all others."""

FOLDER_IMAGES = 50_000
NAME_DIGITS = 32
"""Of the SHA-256: enough that no two images meet."""
CONTENT_DIGITS = 2
"""Of the SHA-256, for folders by content: 20,000 images each of five million."""

RESULTS = ("file", "sha256", "bytes", "reason")
"""What is known of an image once it was tried: `<folder>/<name>`, or why there is none."""


async def _fetch(downloader: Downloader, url: str) -> Download:
    if is_stopped():
        return Download(url, None, "stopped")
    return await downloader.fetch_image(url)


@daft.cls(max_concurrency=FETCH_BATCHES, use_process=False)
class FetchStage:
    """Addresses to the bytes of images."""

    def __init__(self, config: DownloadConfig) -> None:
        self.downloader = Downloader(config)

    @daft.method.batch(
        return_dtype=DataType.struct({"data": DataType.binary(), "reason": DataType.string()}),
        batch_size=FETCH_BATCH,
    )
    async def fetch(self, urls: Series) -> list[dict[str, Any]]:
        """Of each address the bytes, or the reason why there are none."""
        got = await asyncio.gather(*(_fetch(self.downloader, url) for url in urls.to_pylist()))
        return [{"data": download.data, "reason": download.reason} for download in got]


@daft.cls(max_concurrency=FETCH_BATCHES, use_process=False)
class StoreStage:
    """Addresses to files on disk."""

    def __init__(self, root: str, config: DownloadConfig) -> None:
        self.root = Path(root)
        self.downloader = Downloader(config)
        # One writer: two equal images never write the same file at once.
        self.writer = ThreadPoolExecutor(1)
        self.refused: OSError | None = None

    @daft.method.batch(
        return_dtype=DataType.struct(
            {
                "file": DataType.string(),
                "sha256": DataType.string(),
                "bytes": DataType.int64(),
                "reason": DataType.string(),
            }
        ),
        batch_size=FETCH_BATCH,
    )
    async def store(self, urls: Series, folders: Series) -> list[dict[str, Any]]:
        """Of each address the file that has its image now, or the reason why there is none."""
        pairs = zip(urls.to_pylist(), folders.to_pylist(), strict=True)
        return await asyncio.gather(*(self._one(*pair) for pair in pairs))

    async def _one(self, url: str, folder: str | None) -> dict[str, Any]:
        download = await _fetch(self.downloader, url)
        if download.data is None:
            return {"file": None, "sha256": None, "bytes": 0, "reason": download.reason}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.writer, self._write, folder, download.data)

    def _write(self, folder: str | None, data: bytes) -> dict[str, Any]:
        # Once the disk is full nothing more is begun: the command ends, and what the engine
        # still has in hand would leave half a file behind it.
        if self.refused:
            raise self.refused
        try:
            return store_image(self.root, folder, data)
        except OSError as error:
            self.refused = error
            raise


def store_image(root: Path, folder: str | None, data: bytes) -> dict[str, Any]:
    """Write an image that decodes, unless it is there; its :data:`RESULTS`.

    Without a `folder` its content decides, so that it has one file wherever it comes from.
    """
    problem = image_problem(data, whole=True)
    if problem:
        return {"file": None, "sha256": None, "bytes": 0, "reason": problem}
    digest = hashlib.sha256(data).hexdigest()
    file = f"{folder or digest[:CONTENT_DIGITS]}/{digest[:NAME_DIGITS]}.{extension(data)}"
    if not is_stored(root, file, len(data)):
        write_bytes(root / file, data)
    return {"file": file, "sha256": digest, "bytes": len(data), "reason": None}


def is_stored(root: Path, file: str, size: int) -> bool:
    """Whether an image of that size is there."""
    try:
        return (root / file).stat().st_size == size
    except OSError:
        return False


@dataclass(frozen=True)
class ImageStore:
    """A folder of images, the plan of what belongs there, and what came of it.

    Attributes:
        root: of the images; on a cluster all machines see it.
        columns: of the plan, text: the first one and the last, `url`, name a row.
        by_content: whether an image's folder is that of its content, not that of its row.
    """

    root: Path
    columns: tuple[str, ...]
    by_content: bool = False

    @property
    def plan_file(self) -> Path:
        """A parquet file with a row group for each piece."""
        return self.root / ".progress" / "plan.parquet"

    def progress_file(self, piece: int) -> Path:
        """What came of a piece of the plan."""
        return self.root / ".progress" / f"{piece:05d}.photos"

    def fill(self, wanted: pa.Table, how: Filling) -> pa.Table:
        """Download what is missing of `wanted` (the plan's columns) and keep each content once.

        Returns:
            What came of the wanted images, in the order of the plan (which may hold more, of
            earlier calls): its columns and :data:`RESULTS`; `file` is null where there is none.

        Raises:
            UserError: when the network seems to be down.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        sizes = self.extend_plan(wanted, how.piece)
        for leftover in [
            *self.root.glob("*/.*.tmp"),
            *self.root.parent.glob(f".{glob.escape(self.root.name)}*.tmp"),
        ]:
            leftover.unlink(missing_ok=True)  # half-written by a process that was killed
        self._download(sizes, how)
        found = self._results(range(len(sizes)))
        if not self.by_content:
            found = self._keep_one_copy(found)
        return found.filter(pa.array(np.isin(self._row_keys(found), self._row_keys(wanted))))

    def _row_keys(self, table: pa.Table) -> np.ndarray:
        found = [np.zeros(0, np.uint64)]
        for batch in table.to_batches(100_000):
            names = (batch[name].to_pylist() for name in (self.columns[0], self.columns[-1]))
            found.append(keys([f"{first}\t{url}" for first, url in zip(*names, strict=True)]))
        return np.concatenate(found)

    def extend_plan(self, wanted: pa.Table, piece_images: int) -> list[int]:
        """Put what is not planned yet behind what is; the sizes of all pieces."""
        columns = list(self.columns)
        schema = pa.schema([(name, pa.string()) for name in columns])
        pieces = []
        if self.plan_file.is_file():
            old = pq.ParquetFile(self.plan_file)
            groups = map(old.read_row_group, range(old.num_row_groups))
            pieces = [group.select(columns).cast(schema) for group in groups]
        known = self._row_keys(pa.concat_tables([schema.empty_table(), *pieces]))
        found = self._row_keys(wanted)
        new = pd.Series(found).duplicated().to_numpy() | np.isin(found, known)
        rows = wanted.select(columns).cast(schema).filter(pa.array(~new)).combine_chunks()
        pieces += [rows.slice(at, piece_images) for at in range(0, rows.num_rows, piece_images)]
        if rows.num_rows or not pieces:
            with (
                written_atomically(self.plan_file) as temporary,
                pq.ParquetWriter(temporary, schema) as writer,
            ):
                for piece in pieces:
                    writer.write_table(piece)
        return [piece.num_rows for piece in pieces]

    def _download(self, sizes: Sequence[int], how: Filling) -> None:
        starts = np.cumsum([0, *sizes])
        stage: Any = StoreStage(str(self.root.resolve()), how.download).store

        def rows_of(piece: int) -> pa.Table:
            table = pq.ParquetFile(self.plan_file).read_row_group(piece, columns=[*self.columns])
            if self.by_content:
                folders = pa.nulls(table.num_rows, pa.string())
            else:
                rows = range(starts[piece], starts[piece + 1])
                folders = pa.array([f"{row // FOLDER_IMAGES:03d}" for row in rows])
            return table.append_column("folder", folders)

        def stages(frame: Any) -> Any:
            frame = frame.with_column("got", stage(daft.col("url"), daft.col("folder")))
            columns = {name: daft.col("got")[name] for name in RESULTS}
            return frame.with_columns(columns).exclude("got", "folder")

        work_on_pieces(
            self.progress_file,
            len(sizes),
            self._undone(len(sizes)),
            rows_of,
            stages,
            [*self.columns, *RESULTS],
            "plan",
            f"downloading to {self.root.name}",
            how,
        )

    def _results(self, pieces: Iterable[int]) -> pa.Table:
        """What came of some pieces: the columns of the plan, :data:`RESULTS` and `piece`."""
        names = [(name, pa.string()) for name in (*self.columns, "file", "sha256", "reason")]
        schema = pa.schema([*names, ("bytes", pa.int64()), ("piece", pa.int64())])
        tables = [schema.empty_table()]
        for piece in pieces:
            table = read_snapshot(self.progress_file(piece))
            table = table.append_column("piece", pa.array([piece] * table.num_rows, pa.int64()))
            tables.append(table.select(schema.names).cast(schema))
        return pa.concat_tables(tables)

    def _undone(self, count: int) -> list[int]:
        """The pieces that are not done, or of which an image has gone since."""
        done = [piece for piece in range(count) if self.progress_file(piece).is_file()]
        there = self._results(done)
        there = there.filter(there["file"].is_valid())
        files = self._files(there)
        rows = zip(there["piece"].to_pylist(), there["sha256"].to_pylist(), strict=True)
        gone = {piece for piece, digest in rows if digest not in files}
        return sorted(set(range(count)) - set(done) | gone)

    def _files(self, table: pa.Table) -> dict[str, str]:
        """Of each content that is on the disk, by its SHA-256, the first row's file that has it."""
        files: dict[str, str] = {}
        columns = (table[name].to_pylist() for name in ("sha256", "file", "bytes"))
        for digest, file, size in zip(*columns, strict=True):
            if file and digest not in files and is_stored(self.root, file, size):
                files[digest] = file
        return files

    def _keep_one_copy(self, table: pa.Table) -> pa.Table:
        """Give each content the first file that has it; later copies are deleted."""
        files = self._files(table)
        kept = [files.get(digest) for digest in table["sha256"].to_pylist()]
        for file, first in zip(table["file"].to_pylist(), kept, strict=True):
            if file and file != first:
                (self.root / file).unlink(missing_ok=True)
        place = table.schema.get_field_index("file")
        return table.set_column(place, "file", pa.array(kept, pa.string()))
