"""Images fetched by stages of the engine, and a store of them on disk, filled piece by piece.

Stages take and give whole batches, so that the engine holds only a few batches of images between
them, and the network and the model work at the same time.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import threading
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa
import pyarrow.parquet as pq
from daft import DataType, Series

from dataset.dataset_creation_steps.reviews import sized_image
from dataset.dataset_creation_steps.snapshots import (
    PieceReader,
    Pieces,
    may_pass_rows,
    read_snapshot,
    waves,
    whole_pieces,
    write_pieces,
)
from dataset.downloads import Download, Downloader, DownloadLimits
from visual_search.common.files import written_atomically
from visual_search.common.progress import progress_bar
from visual_search.data.image_files import FORMATS, UnreadableImage, open_image
from visual_search.data.images import decode_image

FETCH_BATCH = 64
FETCH_BATCHES = 4
"""Fetched at a time, so that one slow photo does not hold up all others."""

NOT_THERE = {"HTTP 400", "HTTP 403", "HTTP 404", "HTTP 410"}


_stopped = threading.Event()
"""Set where nobody waits for the rest of a query; see :func:`stoppable`."""


def stoppable(batches: Iterator[pa.RecordBatch]) -> Generator[pa.RecordBatch, None, None]:
    """The results of a query, whose stages stop working as soon as nobody takes them any more.

    The engine lets a query run to its end before it lets go of it, be it hours.
    """
    _stopped.clear()
    finished = False
    try:
        # Not `yield from`: that would close the query before its stages are told.
        for batch in batches:  # noqa: UP028
            yield batch
        finished = True
    finally:
        if not finished:
            _stopped.set()


def is_stopped() -> bool:
    """Whether nobody takes the results of the query any more."""
    return _stopped.is_set()


async def fetch_in_stage(downloader: Downloader, url: str, size_hint: int | None) -> Download:
    """As :func:`fetch_photo`, for a stage of a :func:`stoppable` query."""
    if _stopped.is_set():
        return Download(url, None, "stopped")
    return await fetch_photo(downloader, url, size_hint)


async def fetch_photo(downloader: Downloader, url: str, size_hint: int | None) -> Download:
    """Download a photo in the wanted size; where the server has no such size, as it is.

    Without a hint the address is taken as it stands.
    The bytes are looked at: what does not begin as an image of at least some pixels is refused.
    """
    sized = url if size_hint is None else sized_image(url, size_hint)
    found = await downloader.fetch(sized)
    if sized != url and found.reason in NOT_THERE:
        found = await downloader.fetch(url)
    if found.data is None:
        return Download(url, None, found.reason)
    problem = photo_problem(found.data)
    return Download(url, None if problem else found.data, problem)


@daft.cls(max_concurrency=FETCH_BATCHES, use_process=False)
class FetchStage:
    """Addresses to the bytes of photos."""

    def __init__(self, limits: DownloadLimits, size_hint: int) -> None:
        self.size_hint = size_hint
        self.downloader = Downloader(limits)

    @daft.method.batch(
        return_dtype=DataType.struct({"data": DataType.binary(), "reason": DataType.string()}),
        batch_size=FETCH_BATCH,
    )
    async def fetch(self, urls: Series) -> list[dict[str, Any]]:
        """Of each address the bytes, or the reason why there are none."""
        got = await asyncio.gather(
            *(fetch_in_stage(self.downloader, url, self.size_hint) for url in urls.to_pylist())
        )
        return [{"data": download.data, "reason": download.reason} for download in got]


FOLDER_IMAGES = 50_000

NAME_DIGITS = 32
"""Of the SHA-256: enough that no two photos meet."""

CONTENT_DIGITS = 2
"""Of the SHA-256, for folders by content: 20,000 photos each of five million."""

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg"} | {name: name.lower() for name in FORMATS[1:]}


@dataclass(frozen=True)
class Stored:
    """A photo on disk, or why there is none."""

    file: str | None
    """Relative to the store, `<folder>/<name>`."""
    sha256: str | None
    bytes: int
    reason: str | None


def folder_of(row: int) -> str:
    """The folder of the photo of row so-and-so: `000` for the first 50,000."""
    return f"{row // FOLDER_IMAGES:03d}"


def store_photo(root: Path, row: int | None, data: bytes) -> Stored:
    """Write a photo that decodes, unless it is there.

    Args:
        root: folder of the folders.
        row: its place in the plan, which decides the folder; None: the content decides, one of
            256 folders, so that a content has one file wherever it comes from.
        data: the whole file.
    """
    problem = photo_problem(data, whole=True)
    if problem:
        return Stored(None, None, 0, problem)
    extension = EXTENSIONS[open_image(data).format or ""]
    digest = hashlib.sha256(data).hexdigest()
    folder = digest[:CONTENT_DIGITS] if row is None else folder_of(row)
    file = f"{folder}/{digest[:NAME_DIGITS]}.{extension}"
    if not is_stored(root, file, len(data)):
        with written_atomically(root / file) as temporary:
            temporary.write_bytes(data)
    return Stored(file, digest, len(data), None)


def is_stored(root: Path, file: str, size: int) -> bool:
    """Whether a photo of that size is there."""
    try:
        return (root / file).stat().st_size == size
    except OSError:
        return False


@daft.cls(max_concurrency=FETCH_BATCHES, use_process=False)
class StoreStage:
    """Addresses to files on disk."""

    def __init__(
        self, root: str, limits: DownloadLimits, size_hint: int | None, by_content: bool = False
    ) -> None:
        self.root, self.size_hint, self.by_content = Path(root), size_hint, by_content
        self.downloader = Downloader(limits)
        # One writer: two equal photos never write the same file at once.
        self.writer = ThreadPoolExecutor(1)

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
    async def store(self, urls: Series, rows: Series) -> list[dict[str, Any]]:
        """Of each address the file that has its photo now, or the reason why there is none."""
        pairs = zip(urls.to_pylist(), rows.to_pylist(), strict=True)
        return [
            vars(found) for found in await asyncio.gather(*(self._one(*pair) for pair in pairs))
        ]

    async def _one(self, url: str, row: int) -> Stored:
        download = await fetch_in_stage(self.downloader, url, self.size_hint)
        if download.data is None:
            return Stored(None, None, 0, download.reason)
        place = None if self.by_content else row
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.writer, store_photo, self.root, place, download.data)


def remove_leftovers(root: Path) -> None:
    """Half-written files of a process that was killed."""
    for path in [*root.glob("*/.*.tmp"), *root.parent.glob(f".{root.name}*.tmp")]:
        path.unlink(missing_ok=True)


RESULTS = ("file", "sha256", "bytes", "reason")
"""What is known of a photo once it was tried."""


@dataclass(frozen=True)
class StorePlan:
    """A store of photos and the plan in it.

    Attributes:
        root: folder of the photos; on a cluster all machines see it.
        keys: text columns of the plan beside `url`.
        by_content: whether a photo's folder is that of its content, not that of its row.
    """

    root: Path
    keys: tuple[str, ...]
    by_content: bool = False

    def read_piece(self, piece: int) -> pa.Table:
        """What came of a piece: the keys, url and :data:`RESULTS`."""
        return read_snapshot(progress_file(self.root, piece))


def plan_file(root: Path) -> Path:
    """Of a store."""
    return root / ".progress" / "plan.parquet"


def progress_file(root: Path, piece: int) -> Path:
    """What came of a piece of the plan."""
    return root / ".progress" / f"{piece:05d}.photos"


def download_pieces(
    store: StorePlan,
    pieces: int,
    undone: Collection[int],
    download: DownloadLimits,
    *,
    size_hint: int | None,
    distributed: bool,
    retry_failed: bool,
) -> None:
    """Download the photos of all undone pieces.

    Args:
        store: where to, and what the plan is like.
        pieces: of the plan.
        undone: those to do.
        download: limits.
        size_hint: longest side to ask Amazon's servers for, pixels; 0 is as uploaded, None takes
            addresses as they are.
        distributed: whether each piece may be fetched by another machine.
        retry_failed: of the pieces that are done, try photos again that failed for a reason that
            may have passed.

    Raises:
        UserError: when the network seems to be down; see :func:`while_the_network_works`.
    """
    root = store.root
    retried = frozenset(
        piece
        for piece in (set(range(pieces)) - set(undone) if retry_failed else ())
        if len(may_pass_rows(store.read_piece(piece)))
    )
    missing = sorted([*undone, *retried])
    bar = progress_bar(
        f"downloading to {root.name}", "piece", total=pieces, initial=pieces - len(missing)
    )
    with bar:
        frames = _photos(store, retried, missing, distributed)
        stored = _stored(frames, store, download, size_hint)
        write_pieces(
            stored,
            len(undone) < pieces,
            retried,
            file_of=functools.partial(progress_file, root),
            columns=[*store.keys, "url", *RESULTS],
            source="plan",
            advance=bar.update,
        )


def _photos(
    store: StorePlan, retried: frozenset[int], pieces: Sequence[int], distributed: bool
) -> Iterator[Any]:
    """The addresses of all photos of some pieces, as frames of the engine's."""
    names = (*store.keys, "url")
    columns = (*((name, pa.string()) for name in names), ("number", pa.int64()))
    read = functools.partial(read_piece, str(store.root.resolve()), names, retried)
    for some, tasks in waves(pieces, distributed) if pieces else ():
        yield Pieces(PieceReader(columns, read), some, tasks).read()


def read_piece(root: str, names: tuple[str, ...], retried: frozenset[int], piece: int) -> pa.Table:
    """The rows of a piece, or those to try again: the named columns and the photo's number."""
    file = pq.ParquetFile(plan_file(Path(root)))
    start = sum(file.metadata.row_group(number).num_rows for number in range(piece))
    table = file.read_row_group(piece, columns=list(names))
    table = table.append_column("number", pa.array(range(start, start + table.num_rows)))
    if piece not in retried:
        return table
    return table.take(pa.array(may_pass_rows(read_snapshot(progress_file(Path(root), piece)))))


def _stored(
    frames: Iterator[Any], store: StorePlan, download: DownloadLimits, size_hint: int | None
) -> Generator[tuple[int, pa.Table], None, None]:
    """What came of each photo, a piece at a time."""
    from daft import col

    stage: Any = StoreStage(str(store.root.resolve()), download, size_hint, store.by_content).store
    for frame in frames:
        frame = frame.with_column("got", stage(col("url"), col("number")))
        frame = frame.with_columns({name: col("got")[name] for name in RESULTS}).exclude("got")
        yield from whole_pieces(stoppable(frame.to_arrow_iter(results_buffer_size=None)))


MIN_SIDE = 16
"""Pixels; a shop's server sends a single transparent pixel in place of a photo it lost."""


def photo_problem(data: bytes, *, whole: bool = False) -> str | None:
    """What is wrong with the bytes of a photo, None for nothing.

    Args:
        data: the whole file.
        whole: decode all of it, which finds a cut file; else only its beginning is read.
    """
    try:
        width, height = open_image(data).size
        if whole:
            decode_image(data)
    except UnreadableImage as error:
        return str(error)
    if min(width, height) < MIN_SIDE:
        return f"{width} x {height} pixels are too few"
    return None
