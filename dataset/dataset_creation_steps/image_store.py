"""Photos kept on disk: each content once, in folders of 50,000, under the name of its SHA-256."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daft
from daft import DataType, Series
from PIL import Image

from dataset.dataset_creation_steps.image_stages import FETCH_BATCH, FETCH_BATCHES, fetch_in_stage
from visual_search.downloads import Downloader, DownloadLimits
from visual_search.files import written_atomically
from visual_search.photo_checks import photo_problem

FOLDER_IMAGES = 50_000

NAME_DIGITS = 32
"""Of the SHA-256: enough that no two photos meet."""

CONTENT_DIGITS = 2
"""Of the SHA-256, for folders by content: 20,000 photos each of five million."""

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp"}


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
    with Image.open(io.BytesIO(data)) as image:
        extension = EXTENSIONS.get(image.format or "")
    if extension is None:
        return Stored(None, None, 0, f"a format that is not kept ({image.format})")
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


def keep_one_copy(root: Path, photos: Iterable[tuple[str, str, int]]) -> dict[str, str]:
    """Of each content the file that its first row has; later copies are deleted.

    Args:
        root: of the store.
        photos: file, SHA-256 and size, in the order of the rows.

    Returns:
        File by SHA-256, of the contents that are there.
    """
    first: dict[str, str] = {}
    there: dict[str, str] = {}
    for file, digest, size in photos:
        canonical = first.setdefault(digest, file)
        if is_stored(root, canonical, size):
            there[digest] = canonical
            if file != canonical:
                (root / file).unlink(missing_ok=True)
        elif is_stored(root, file, size):
            (root / canonical).parent.mkdir(parents=True, exist_ok=True)
            (root / file).replace(root / canonical)
            there[digest] = canonical
    return there


def remove_leftovers(root: Path) -> None:
    """Half-written files of a process that was killed."""
    for path in [*root.glob("*/.*.tmp"), *root.parent.glob(f".{root.name}*.tmp")]:
        path.unlink(missing_ok=True)
