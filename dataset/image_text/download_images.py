"""Step 1: keep the photos of `images.json`, and the queries of those that are there.

python dataset/image_text/download_images.py images.json metadata.json
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.dataset_creation_steps.engine import (
    add_download_options,
    add_piece_options,
    add_runner_options,
    limits,
    start_engine,
)
from visual_search.common.errors import UserError, exit_with_sentence

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from dataset.dataset_creation_steps.photos import StorePlan
    from dataset.downloads import DownloadLimits
    from dataset.image_text.query_lines import PhotoIndex

DEFAULT_OUTPUT = Path("dataset/image_text_photos")
PIECE_PHOTOS = 1000
FAILURES = ["image", "url", "reason"]


@dataclass
class Kept:
    """What a call left.

    Attributes:
        photos: images whose photo is there.
        contents: different contents among them.
        several: photos left out, as their image has another one from another address.
        failures: photos that could not be had, by reason.
        lines: of metadata.json that were kept.
        queries: in them.
        tally: what was counted while reading, and what was left out.
    """

    photos: int = 0
    contents: int = 0
    several: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    queries: int = 0
    tally: Counter[str] = field(default_factory=Counter)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="download_images.py",
        description="Download the photos of images.json, each content once, and write "
        "metadata.json again with those lines whose photo is there, and its file. Killed at any "
        "moment, the same command goes on where it was.",
    )
    parser.add_argument("images", type=Path, help='images.json: {"image": 1, "url": "http://…"}')
    parser.add_argument(
        "metadata", type=Path, help='metadata.json: {"image": 1, "queries": ["…", "…"]}'
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        help="folder of the photos; the tables stand beside it (%(default)s)",
    )
    add_piece_options(parser, PIECE_PHOTOS)
    add_download_options(parser, size_hint=False)
    add_runner_options(parser)
    return parser.parse_args(arguments)


def metadata_file(root: Path) -> Path:
    """The lines of `metadata.json` whose photo is there, beside the folder of photos."""
    return root.with_name(f"{root.name}.metadata.json")


def failures_file(root: Path) -> Path:
    """The photos that could not be had, each with its reason."""
    return root.with_name(f"{root.name}.failures.csv")


def download_images(
    images: Path,
    metadata: Path,
    root: Path,
    download: DownloadLimits,
    *,
    piece_photos: int = PIECE_PHOTOS,
    distributed: bool = False,
    retry_failed: bool = False,
) -> Kept:
    """Download what is missing and shrink `metadata.json` to what is there.

    Args:
        images: ids and addresses, JSON lines, plain or gzipped.
        metadata: ids and queries, likewise.
        root: folder of the photos; on a cluster all machines see it.
        download: limits.
        piece_photos: photos between two records of what is done.
        distributed: whether each piece may be fetched by another machine.
        retry_failed: try photos again that failed for a reason that may have passed.

    Raises:
        UserError: when a file is missing or has nothing of its kind, nothing could be had, or no
            photo has a query.
    """
    from dataset.dataset_creation_steps.photos import StorePlan, download_pieces, remove_leftovers
    from dataset.image_text.query_lines import extend_plan, read_images

    for path in (images, metadata):
        if not path.is_file():
            raise UserError(f"{path} does not exist")
    if metadata_file(root).resolve() == metadata.resolve():
        raise UserError(f"{metadata} would be overwritten: name another --output")
    root.mkdir(parents=True, exist_ok=True)
    kept = Kept()
    pieces, wanted = extend_plan(root, read_images(images, kept.tally), piece_photos)
    remove_leftovers(root)
    store = StorePlan(root, ("image",), by_content=True)
    download_pieces(
        store,
        pieces,
        [piece for piece in range(pieces) if not _is_whole(store, piece)],
        download,
        size_hint=None,
        distributed=distributed,
        retry_failed=retry_failed,
    )
    index = _index(store, pieces, wanted, kept)
    _shrink(metadata, root, index, kept)
    return kept


def _is_whole(store: StorePlan, piece: int) -> bool:
    """Whether a piece is done and all its photos are still there."""
    from dataset.dataset_creation_steps.photos import is_stored, progress_file

    if not progress_file(store.root, piece).is_file():
        return False
    table = store.read_piece(piece).select(["file", "bytes"]).to_pydict()
    return all(
        file is None or is_stored(store.root, file, size)
        for file, size in zip(table["file"], table["bytes"], strict=True)
    )


def _index(store: StorePlan, pieces: int, wanted: np.ndarray, kept: Kept) -> PhotoIndex:
    """Look through all pieces: which photos are there; the others are written down."""
    from dataset.image_text.query_lines import PhotoIndex
    from visual_search.common.files import written_atomically

    index = PhotoIndex()
    with (
        written_atomically(failures_file(store.root)) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as handle,
    ):
        handle.write(",".join(FAILURES) + "\n")
        for table in _wanted_rows(store, pieces, wanted):
            there = table.filter(table["file"].is_valid())
            if there.num_rows:
                index.add(there["image"].to_pylist(), there["file"].to_pylist())
            failed = table.filter(table["file"].is_null()).select(FAILURES).to_pandas()
            kept.failures.update(failed["reason"].tolist())
            failed.to_csv(handle, index=False, header=False)
    kept.several = index.finish()
    kept.photos, kept.contents = len(index), index.contents()
    if not kept.photos:
        raise UserError(f"no photo could be had; {failures_file(store.root)} has the reasons")
    return index


def _wanted_rows(store: StorePlan, pieces: int, wanted: np.ndarray) -> Iterator[pa.Table]:
    """What came of the photos that are wanted now; the plan may hold more, of earlier calls."""
    import pyarrow as pa

    from dataset.image_text.query_lines import photo_keys, places

    for piece in range(pieces):
        table = store.read_piece(piece)
        found = photo_keys(table["image"].to_pylist(), table["url"].to_pylist())
        yield table.filter(pa.array(places(found, wanted) >= 0))


def _shrink(metadata: Path, root: Path, index: PhotoIndex, kept: Kept) -> None:
    """Write the lines of `metadata.json` whose photo is there, each with its file."""
    import msgspec

    from dataset.image_text.query_lines import QueryLine, read_queries
    from visual_search.common.files import written_atomically

    encode = msgspec.json.Encoder().encode
    with written_atomically(metadata_file(root)) as temporary, temporary.open("wb") as handle:
        for rows in read_queries(metadata, kept.tally):
            files = index.files([image for image, _ in rows]) if rows else []
            for (_, line), file in zip(rows, files, strict=True):
                if file is None:
                    continue
                handle.write(encode(QueryLine(line.image, line.queries, file)) + b"\n")
                kept.lines += 1
                kept.queries += len(line.queries)
    if not kept.lines:
        raise UserError(
            f"not one line of {metadata} has a photo that is there: do both files belong together?"
        )


def main() -> None:
    """Download and say what there is."""
    arguments = parse_arguments()
    start_engine(arguments.runner, arguments.ray_address)
    root: Path = arguments.output
    kept = download_images(
        arguments.images,
        arguments.metadata,
        root,
        limits(arguments),
        piece_photos=arguments.piece_photos,
        distributed=arguments.runner == "ray",
        retry_failed=arguments.retry_failed,
    )
    for what, count in sorted(kept.tally.items()):
        print(f"{count:8d} {what}")
    for reason, count in kept.failures.most_common(10):
        print(f"{count:8d} not there: {reason}")
    print(
        f"{kept.photos} photos of {kept.contents} contents in {root}, "
        f"{kept.failures.total()} could not be had ({failures_file(root)})"
    )
    print(f"{metadata_file(root)}: {kept.lines} photos with {kept.queries} queries")
    print(f"next: python dataset/image_text/text_cleaning.py {metadata_file(root)}")


if __name__ == "__main__":
    exit_with_sentence(main)
