"""Step 1: keep the images of `images.json`, and the queries of those that are there.

python dataset/image_text/download_images.py images.json metadata.json
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dataset.dataset_creation_steps.engine import (
    Filling,
    add_filling_options,
    failures_file,
    filling,
    print_failures,
    start_engine,
)
from visual_search.common.errors import UserError, print_next, run_command


@dataclass
class Kept:
    """What a call left."""

    images: int = 0  # ids whose image is there
    contents: int = 0  # different ones among them
    failures: Counter[str] = field(default_factory=Counter)  # by reason
    lines: int = 0  # of metadata.json that were kept
    queries: int = 0  # in them
    tally: Counter[str] = field(default_factory=Counter)  # what was read and left out


def metadata_file(root: Path) -> Path:
    """The lines of `metadata.json` whose image is there, beside the folder of images."""
    return root.with_name(f"{root.name}.metadata.json")


def download_images(images: Path, metadata: Path, root: Path, how: Filling) -> Kept:
    """Download what is missing of `images`, and shrink `metadata` to what is there.

    Both are JSON lines, plain or gzipped. Of several images of one id the first counts.

    Raises:
        UserError: when a file is missing or has nothing of its kind, nothing could be had, or no
            image has a query.
    """
    import msgspec
    import pandas as pd

    from dataset.dataset_creation_steps.image_store import ImageStore
    from dataset.dataset_creation_steps.snapshots import keys
    from dataset.image_text.query_lines import QueryLine, read_images, read_lines
    from visual_search.common.files import write_csv, written_atomically

    for path in (images, metadata):
        if not path.is_file():
            raise UserError(f"{path} does not exist")
    if metadata_file(root).resolve() == metadata.resolve():
        raise UserError(f"{metadata} would be overwritten: name another --output")
    kept = Kept()
    store = ImageStore(root, "image", by_content=True)
    found = store.fill(read_images(images, kept.tally).to_pandas(), how)
    failed = found.loc[found["file"].isna(), ["image", "url", "reason"]]
    kept.failures.update(failed["reason"].tolist())
    write_csv(failures_file(root), failed)
    found = found.loc[found["file"].notna(), ["image", "file"]]
    if found.empty:
        raise UserError(
            f"no image could be had; {failures_file(root)} has the reasons (--retry-failed tries "
            "again)"
        )
    found = found.drop_duplicates("image")
    kept.contents = found["file"].nunique()
    files, index = found["file"].tolist(), pd.Index(keys(found["image"].tolist()))
    kept.images = len(index)
    encode = msgspec.json.Encoder().encode
    with written_atomically(metadata_file(root)) as temporary, temporary.open("wb") as handle:
        for rows in read_lines(metadata, kept.tally, QueryLine):
            places = index.get_indexer(keys([image for image, _ in rows]))
            for (_, line), place in zip(rows, places.tolist(), strict=True):
                if place < 0:
                    continue
                line.file = files[place]
                handle.write(encode(line) + b"\n")
                kept.lines += 1
                kept.queries += len(line.queries)
        if not kept.lines:
            raise UserError(
                f"not one line of {metadata} has an image that is there: do both files belong "
                "together?"
            )
    return kept


def main() -> None:
    """Download and say what there is."""
    parser = argparse.ArgumentParser(
        prog="download_images.py",
        description="Download the images of images.json, each content once, and write "
        "metadata.json again with those lines whose image is there, and its file. Killed at any "
        "moment, the same command goes on where it was.",
    )
    add, output = parser.add_argument, Path("dataset/image_text_photos")
    add("images", type=Path, help='images.json: {"image": 1, "url": "http://…"}')
    add("metadata", type=Path, help='metadata.json: {"image": 1, "queries": ["…", "…"]}')
    words = "folder of the images; the tables stand beside it (%(default)s)"
    add("--output", type=Path, default=output, help=words)
    add_filling_options(parser, size_hint=False)
    arguments = parser.parse_args()
    start_engine(arguments.runner, arguments.ray_address)
    root: Path = arguments.output
    kept = download_images(arguments.images, arguments.metadata, root, filling(arguments))
    for what, count in sorted(kept.tally.items()):
        print(f"{count:8d} {what}")
    print_failures(kept.failures, "not there")
    print(
        f"{kept.images} images of {kept.contents} contents in {root}, "
        f"{kept.failures.total()} could not be had ({failures_file(root)})"
    )
    print(f"{metadata_file(root)}: {kept.lines} images with {kept.queries} queries")
    print_next("dataset/image_text/text_cleaning.py", metadata_file(root))


if __name__ == "__main__":
    run_command(main)
