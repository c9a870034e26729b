"""A store of images on disk: downloaded in pieces, each content kept once.

Stages of the engine take and give whole batches, so that it holds only a few batches of images
between them, and the network and the model work at the same time.
"""

from __future__ import annotations

import asyncio
import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pandas as pd
import pyarrow as pa
from daft import DataType, Series

from dataset.dataset_creation_steps import snapshots
from dataset.dataset_creation_steps.engine import DownloadConfig, Filling
from dataset.dataset_creation_steps.snapshots import is_stopped, keys
from dataset.downloads import Download, Downloader, extension, image_problem
from visual_search.common.files import write_bytes
from visual_search.common.progress import progress_bar

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
        downloads = await asyncio.gather(*map(self._one, urls.to_pylist()))
        return [{"data": download.data, "reason": download.reason} for download in downloads]

    async def _one(self, url: str) -> Download:
        if is_stopped():
            return Download(url, None, "stopped")
        return await self.downloader.fetch_image(url)


@daft.cls(max_concurrency=FETCH_BATCHES, use_process=False)
class StoreStage:
    """The bytes of images to files on disk."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
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
    async def store(self, data: Series, folders: Series) -> list[dict[str, Any]]:
        """Of each image the file that has it now, or what is wrong with it; nulls stay nulls."""
        # Once the disk is full nothing more is begun: the command ends, and what the engine
        # still has in hand would leave half a file behind it.
        if self.refused:
            raise self.refused
        try:
            pairs = zip(data.to_pylist(), folders.to_pylist(), strict=True)
            return await asyncio.to_thread(
                lambda: [store_image(self.root, folder, image) for image, folder in pairs]
            )
        except OSError as error:
            self.refused = error
            raise


def store_image(root: Path, folder: str | None, data: bytes | None) -> dict[str, Any]:
    """Write an image that decodes, unless it is there; its :data:`RESULTS`.

    Without a `folder` its content decides, so that it has one file wherever it comes from.
    """
    problem = None if data is None else image_problem(data, whole=True)
    if data is None or problem:
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
    """A folder of images, and a record of what came of each that was ever asked for.

    Attributes:
        root: of the images; on a cluster all machines see it.
        columns: text; the first one and the last, `url`, name a row.
        by_content: whether an image's folder is that of its content, not that of its row.
    """

    root: Path
    columns: tuple[str, ...]
    by_content: bool = False

    def fill(self, wanted: pa.Table, how: Filling) -> pa.Table:
        """Download what is missing of `wanted`, which has the store's columns; keep a content once.

        Returns:
            What came of the wanted images, each once, in their order: the columns and
            :data:`RESULTS`; `file` is null where there is none.

        Raises:
            UserError: when the network seems to be down.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in [
            *self.root.glob("*/.*.tmp"),
            *self.root.parent.glob(f".{glob.escape(self.root.name)}*.tmp"),
        ]:
            leftover.unlink(missing_ok=True)  # half-written by a process that was killed
        wanted = wanted.select(list(self.columns))
        twice = pd.Series(self._row_keys(wanted)).duplicated().to_numpy()
        wanted = wanted.filter(pa.array(~twice)).combine_chunks()
        records = self._records()
        found, files = self._looked_up(wanted, records), self._files(records)
        known = zip(found["sha256"].to_pylist(), found["reason"].to_pylist(), strict=True)
        # Neither kept nor failed: an image that was not tried, or has gone since.
        missing = [n for n, (sha, why) in enumerate(known) if why is None and sha not in files]
        self._download(found.take(pa.array(missing, pa.int64())), records.num_rows, how)
        if how.retry_failed:
            again = found.take(pa.array(snapshots.may_pass_rows(found)))
            self._download(again, records.num_rows, how, again=True)
        records = self._records()
        files = self._files(records)
        kept = zip(records["sha256"].to_pylist(), records["file"].to_pylist(), strict=True)
        for copy in [file for sha, file in kept if file and files.get(sha, file) != file]:
            (self.root / copy).unlink(missing_ok=True)
        found = self._looked_up(wanted, records)
        names = pa.array([files.get(sha) for sha in found["sha256"].to_pylist()], pa.string())
        return found.set_column(found.schema.get_field_index("file"), "file", names)

    @property
    def _schema(self) -> pa.Schema:
        """Of a record: the columns and :data:`RESULTS`."""
        names = (*self.columns, *RESULTS)
        return pa.schema([(name, pa.int64() if name == "bytes" else pa.string()) for name in names])

    def _row_keys(self, table: pa.Table) -> np.ndarray:
        found = [np.zeros(0, np.uint64)]
        for batch in table.to_batches(100_000):
            names = (batch[name].to_pylist() for name in (self.columns[0], self.columns[-1]))
            found.append(keys([f"{first}\t{url}" for first, url in zip(*names, strict=True)]))
        return np.concatenate(found)

    def _pieces(self) -> dict[int, Path]:
        """Files with the records of some images each, in the order in which they were made."""
        found = (self.root / ".progress").glob("*.photos")
        return dict(sorted((int(path.stem), path) for path in found))

    def _records(self) -> pa.Table:
        """The last record of every row."""
        pieces = (snapshots.read_snapshot(path) for path in self._pieces().values())
        schema = self._schema
        tables = [piece.select(schema.names).cast(schema) for piece in pieces]
        table = pa.concat_tables([schema.empty_table(), *tables])
        older = pd.Series(self._row_keys(table)).duplicated(keep="last").to_numpy()
        return table.filter(pa.array(~older)).combine_chunks()

    def _looked_up(self, wanted: pa.Table, records: pa.Table) -> pa.Table:
        """The wanted rows with :data:`RESULTS`, which are null where there is no record."""
        places = pd.Index(self._row_keys(records)).get_indexer(self._row_keys(wanted))
        found = records.take(pa.array(places, mask=places < 0))
        for name in RESULTS:
            wanted = wanted.append_column(name, found[name])
        return wanted.cast(self._schema)

    def _files(self, records: pa.Table) -> dict[str, str]:
        """Of each content that is on the disk, by its SHA-256, the first row's file that has it."""
        files: dict[str, str] = {}
        columns = (records[name].to_pylist() for name in ("sha256", "file", "bytes"))
        for digest, file, size in zip(*columns, strict=True):
            if file and digest not in files and is_stored(self.root, file, size):
                files[digest] = file
        return files

    def _download(self, rows: pa.Table, known: int, how: Filling, *, again: bool = False) -> None:
        """Fetch the images of some rows, which stand behind so many; a record after each piece."""
        if not rows.num_rows:
            return

        def folder(row: int, file: str | None) -> str | None:
            if self.by_content:
                return None
            return file.partition("/")[0] if file else f"{(known + row) // FOLDER_IMAGES:03d}"

        folders = [folder(row, file) for row, file in enumerate(rows["file"].to_pylist())]
        rows = rows.select(list(self.columns))
        rows = rows.append_column("folder", pa.array(folders, pa.string()))
        first = max(self._pieces(), default=-1) + 1
        numbers = range(first, first + -(-rows.num_rows // how.piece))
        fetch: Any = FetchStage(how.download).fetch
        store: Any = StoreStage(str(self.root.resolve())).store

        def stages(frame: Any) -> Any:
            got, kept = daft.col("got"), daft.col("kept")
            frame = frame.with_column("got", fetch(daft.col("url")))
            frame = frame.with_column("kept", store(got["data"], daft.col("folder")))
            columns = {name: kept[name] for name in RESULTS}
            columns["reason"] = got["reason"].fill_null(kept["reason"])
            return frame.with_columns(columns).exclude("got", "kept", "folder")

        pieces = snapshots.through_stages(
            numbers,
            lambda number: rows.slice((number - first) * how.piece, how.piece),
            stages,
            how.distributed,
        )
        retried = numbers if again else ()
        with progress_bar(f"downloading to {self.root.name}", "piece", total=len(numbers)) as bar:
            for number, table in snapshots.while_the_network_works(pieces, retried):
                path = self.root / ".progress" / f"{number:05d}.photos"
                snapshots.write_snapshot(path, table.select(self._schema.names), "plan")
                bar.update()
