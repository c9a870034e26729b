"""The photos of a plan, downloaded to a store piece by piece.

A plan (`<store>/.progress/plan.parquet`) has a row group for each piece: key columns and an
address. What came of a piece lies beside it (`00007.photos`), once it is done: whoever starts again
does those that have none.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset.dataset_creation_steps.image_stages import stoppable
from dataset.dataset_creation_steps.image_store import StoreStage
from dataset.dataset_creation_steps.piece_source import PieceReader, Pieces, waves, whole_pieces
from dataset.dataset_creation_steps.snapshots import (
    may_pass_rows,
    read_snapshot,
    while_the_network_works,
    with_rows,
    write_snapshot,
)
from visual_search.downloads import DownloadLimits
from visual_search.progress import progress_bar

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
    columns = [*store.keys, "url", *RESULTS]
    worked = len(undone) < pieces
    with bar:
        frames = _photos(store, retried, missing, distributed)
        stored = _stored(frames, store, download, size_hint)
        for number, rows in while_the_network_works(stored, worked, retried):
            path = progress_file(root, number)
            if number in retried:
                old = read_snapshot(path)
                rows = with_rows(old, may_pass_rows(old), rows)
            write_snapshot(path, rows.select(columns), source="plan")
            bar.update()


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
