"""Writing `dataset_info.csv`, the common table of training images, at any number of rows.

Rows are streamed from the reader of a data set through the reading of the images' sizes to the
file, so that memory does not grow with their number.
"""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd

from visual_search.common.errors import UserError
from visual_search.common.files import write_csv, written_atomically
from visual_search.data.image_files import UnreadableImage, stored_size
from visual_search.data.images import Box, clip_box

DATASET_INFO = "dataset_info.csv"
BROKEN_IMAGES = "broken_photos.csv"
COLUMNS = (
    "file_name",
    "label",
    "title",
    "bbox",
    "width",
    "height",
    "evaluation_status",
    "is_test",
    "hash",
)
OPTIONAL_COLUMNS = ("title", "bbox", "evaluation_status", "hash")

# Images a thread looks at before it hands its answers over: a future each would cost more than
# the reading of a header.
CHUNK = 128
BLOCK = 64 * CHUNK
MOST_BROKEN_AT_THE_START = 1000

Facts = TypeVar("Facts")


class InfoRow(NamedTuple):
    """One image of `dataset_info.csv`."""

    file_name: str
    """Relative to the folder of the table."""
    label: str
    title: str = ""
    bbox: Box | None = None
    """`x, y, w, h` in pixels of the stored image; None is the whole image."""
    width: int = 0
    height: int = 0
    """Pixels of the stored image, EXIF orientation ignored; 0 is not known yet."""
    evaluation_status: str = ""
    """`train`, `query`, `gallery`, `test`, or empty."""
    is_test: bool = False
    hash: str = ""


def read_each(
    paths: Iterable[Path], read: Callable[[Path], Facts], workers: int = 0
) -> Iterator[Facts | UnreadableImage]:
    """What `read` says of each image, in the order of `paths`, read by several threads ahead.

    Args:
        paths: may be endless; only a block of them is held.
        read: called in a thread; an :class:`UnreadableImage` it raises becomes the answer.
        workers: threads; 0 is four a core, as most of a header's time is waiting for the disk.
    """

    def answer(path: Path) -> Facts | UnreadableImage:
        try:
            return read(path)
        except UnreadableImage as error:
            return error

    remaining = iter(paths)
    with ThreadPoolExecutor(workers or 4 * (os.cpu_count() or 1)) as pool:
        while block := list(islice(remaining, BLOCK)):
            chunks = [block[start : start + CHUNK] for start in range(0, len(block), CHUNK)]
            for answers in pool.map(lambda chunk: list(map(answer, chunk)), chunks):
                yield from answers


Broken = list[tuple[str, str]]
"""`file_name` of the images that a table leaves out, and the reason."""


def write_list(file: Path, columns: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    """Write a csv file of two columns; one of an earlier run goes where there are no rows."""
    file.unlink(missing_ok=True)
    if rows:
        write_csv(file, pd.DataFrame(rows, columns=columns))


def write_broken(file: Path, broken: Broken) -> None:
    """List the broken images, unless there are none."""
    write_list(file, ("file_name", "reason"), broken)


def with_sizes(
    rows: Iterable[InfoRow],
    folder: Path,
    broken: Broken,
    *,
    read: Callable[[Path], tuple[int, int]] = stored_size,
    workers: int = 0,
) -> Iterator[InfoRow]:
    """The rows with the sizes of their images, in their order, without those of broken images.

    A box that reaches outside its image is cut to it; a row whose box lies outside altogether,
    or has no area, counts as broken.

    Args:
        rows: may be millions; only a block of them is held.
        folder: what their paths are relative to.
        broken: is told which images are left out.
        read: :func:`stored_size` trusts the header, `images.decoded_size` reads every pixel.
        workers: threads, see :func:`read_each`.

    Raises:
        UserError: when none of the first thousand images can be read.
    """
    ahead: deque[InfoRow] = deque()

    def paths() -> Iterator[Path]:
        for row in rows:
            ahead.append(row)
            yield folder / row.file_name

    for seen, answer in enumerate(read_each(paths(), read, workers), 1):
        row = ahead.popleft()
        if isinstance(answer, UnreadableImage):
            broken.append((row.file_name, str(answer)))
        else:
            width, height = answer
            box = row.bbox and clip_box(row.bbox, width, height)
            if row.bbox and not box:
                reason = f"no part of its box {row.bbox} lies in its {width} x {height} pixels"
                broken.append((row.file_name, reason))
            else:
                yield row._replace(width=width, height=height, bbox=box)
        if seen == len(broken) == MOST_BROKEN_AT_THE_START:
            raise UserError(
                f"none of the first {seen} images can be read, for example "
                f"{folder / broken[0][0]}: {broken[0][1]}"
            )


def write_dataset_info(file: Path, rows: Iterable[InfoRow], optional: Collection[str] = ()) -> int:
    """Write a table row by row, under a temporary name until it is whole.

    Args:
        file: the csv file; its folder is made.
        rows: with paths relative to that folder.
        optional: which of `OPTIONAL_COLUMNS` the table has.

    Returns:
        How many rows were written.

    Raises:
        UserError: when there is no row at all.
    """
    columns = [name for name in COLUMNS if name not in OPTIONAL_COLUMNS or name in optional]
    count = 0
    with (
        written_atomically(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            count += 1
            values = {
                **row._asdict(),
                # A line break within a cell would make every line number after it wrong.
                "title": " ".join(row.title.split()),
                "bbox": ",".join(map(str, row.bbox)) if row.bbox else "",
                "is_test": int(row.is_test),
            }
            writer.writerow([values[name] for name in columns])
        if not count:
            raise UserError(f"there is no image to write into {file}")
    return count
