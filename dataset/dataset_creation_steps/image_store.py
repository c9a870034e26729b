"""A store of images on disk: downloaded in pieces, each content kept once.

Stages of the engine take and give whole batches, so that it holds only a few batches of images
between them, and the network and the model work at the same time.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daft
import pandas as pd
import pyarrow as pa
from daft import DataType, Series

from dataset.dataset_creation_steps import snapshots
from dataset.dataset_creation_steps.engine import DownloadConfig, Filling
from dataset.dataset_creation_steps.snapshots import is_stopped
from dataset.downloads import Download, Downloader, extension, image_problem, may_pass
from visual_search.common.errors import UserError
from visual_search.common.files import write_bytes

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
        return [download._asdict() for download in downloads]

    async def _one(self, url: str) -> Download:
        if is_stopped():
            return Download(None, "stopped")
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
        key: a column of text that, with `url`, names a row.
        by_content: whether an image's folder is that of its content, not that of its row.
    """

    root: Path
    key: str
    by_content: bool = False

    def fill(self, wanted: pd.DataFrame, how: Filling) -> pd.DataFrame:
        """Download what is missing of `wanted`, which has key and `url`; keep a content once.

        Returns:
            The wanted images, each once, in their order, with :data:`RESULTS`; `file` is null
            where there is none.

        Raises:
            UserError: when the network seems to be down, or images of another size are there.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        snapshots.remove_leftovers(self.root.parent, self.root.name)
        for leftover in self.root.glob("*/.*.tmp"):
            leftover.unlink(missing_ok=True)
        records, hint = self._records(), str(how.download.size_hint)
        # Earlier versions wrote "plan", whatever the size.
        if others := {*map(snapshots.source_of, self._pieces())} - {hint, "plan"}:
            raise UserError(
                f"the images in {self.root} were asked for with the size hint "
                f"{', '.join(map(str, others))}, not {hint}: name that one, or another folder"
            )
        found = self._looked_up(wanted, records)
        # Neither kept nor failed: an image that was not tried, or has gone since.
        missing = found[found["stored"].isna() & found["reason"].isna()]
        self._download(missing, len(records), how)
        if how.retry_failed:
            again = found[found["reason"].fillna("").map(may_pass).astype(bool)]
            self._download(again, len(records), how, again=True)
        found = self._looked_up(wanted, self._records())
        return found.assign(file=found["stored"]).drop(columns="stored")

    @property
    def _schema(self) -> pa.Schema:
        """Of a record: what names it, and :data:`RESULTS`."""
        names = (self.key, "url", *RESULTS)
        return pa.schema([(name, pa.int64() if name == "bytes" else pa.string()) for name in names])

    def _pieces(self) -> list[Path]:
        """Files with the records of some images each, in the order in which they were made."""
        found = (self.root / ".progress").glob("*.photos")
        return sorted(found, key=lambda path: int(path.stem))

    def _records(self) -> pd.DataFrame:
        """The last record of every row."""
        schema = self._schema
        pieces = map(snapshots.read_snapshot, self._pieces())
        tables = [piece.select(schema.names).cast(schema) for piece in pieces]
        records = pa.concat_tables([schema.empty_table(), *tables]).to_pandas()
        return records.drop_duplicates([self.key, "url"], keep="last")

    def _looked_up(self, wanted: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
        """The wanted rows with their record, and in `stored` the one file of their content.

        A record is null where there is none, and so is a file that is not on the disk. Other files
        of the content, which were stored at the same time, are removed.
        """
        kept = records[records["file"].notna()]
        sizes = zip(kept["file"], kept["bytes"], strict=True)
        there = [is_stored(self.root, file, size) for file, size in sizes]
        kept = kept[pd.Series(there, kept.index, dtype=bool)]
        first = kept.drop_duplicates("sha256").set_index("sha256")["file"]
        for copy in kept.loc[kept["file"] != kept["sha256"].map(first), "file"]:
            (self.root / copy).unlink(missing_ok=True)
        wanted = wanted.drop_duplicates([self.key, "url"])
        found = wanted.merge(records, how="left", on=[self.key, "url"])
        found = found.astype(dict.fromkeys(("file", "sha256", "reason"), "string"))
        return found.assign(stored=found["sha256"].map(first))

    def _download(
        self, rows: pd.DataFrame, known: int, how: Filling, *, again: bool = False
    ) -> None:
        """Fetch the images of some rows, which stand behind so many; a record after each piece."""
        if rows.empty:
            return
        places = pd.Series(range(known, known + len(rows)), rows.index)
        folders = (places // FOLDER_IMAGES).map("{:03d}".format)
        folders = rows["file"].str.split("/").str[0].fillna(folders)  # where it was before
        rows = rows[[self.key, "url"]].assign(folder=None if self.by_content else folders)
        schema = pa.schema([(name, pa.string()) for name in rows])
        table = pa.Table.from_pandas(rows, schema, preserve_index=False)
        pieces = self._pieces()
        first = int(pieces[-1].stem) + 1 if pieces else 0
        numbers = range(first, first + -(-len(rows) // how.piece))
        fetch: Any = FetchStage(how.download).fetch
        store: Any = StoreStage(str(self.root.resolve())).store

        def stages(frame: Any) -> Any:
            got, kept = daft.col("got"), daft.col("kept")
            frame = frame.with_column("got", fetch(daft.col("url")))
            frame = frame.with_column("kept", store(got["data"], daft.col("folder")))
            columns = {name: kept[name] for name in RESULTS}
            columns["reason"] = got["reason"].fill_null(kept["reason"])
            return frame.with_columns(columns).exclude("got", "kept", "folder")

        for number, piece in snapshots.through_stages(
            f"downloading to {self.root.name}",
            numbers,
            lambda number: table.slice((number - first) * how.piece, how.piece),
            stages,
            how.distributed,
            numbers if again else (),
        ):
            path = self.root / ".progress" / f"{number:05d}.photos"
            hint = str(how.download.size_hint)
            snapshots.write_snapshot(path, piece.select(self._schema.names), hint)
