"""Step 4: keep the chosen photos.

python dataset/dataset_creation_steps/download_images.py X_mean_05.parquet Y_mean_05.parquet
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from visual_search.common.files import written_atomically

if TYPE_CHECKING:
    import pandas as pd

    from dataset.downloads import DownloadLimits

DEFAULT_OUTPUT = Path("dataset/images_mean_50k")
PIECE_PHOTOS = 1000
SELECTION = ["asin", "role", "url", "mean_cosine"]
COLUMNS = ["asin", "role", "url", "file", "sha256", "bytes", "reason"]
"""What is known of each photo of the plan once it has been tried."""


@dataclass(frozen=True)
class Kept:
    """What a call of step 4 left."""

    photos: int
    duplicates: int
    """Photos whose content another row has."""
    failures: Counter[str]
    """Photos that could not be had, by reason."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="download_images.py",
        description="Step 4: download the photos that analyse_pairs.py chose into folders of "
        "50,000, each content once, and write a table of those that are there. Killed at any "
        "moment, the same command goes on where it was.",
    )
    parser.add_argument("selections", type=Path, nargs="+", help="<Category>_mean_05.parquet …")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the photos (%(default)s)"
    )
    add_piece_options(parser, PIECE_PHOTOS)
    add_download_options(parser)
    add_runner_options(parser)
    return parser.parse_args(arguments)


def table_file(root: Path) -> Path:
    """The table of the photos that are there, beside their folder."""
    return root.with_name(f"{root.name}.parquet")


def failures_file(root: Path) -> Path:
    """The photos that could not be had, each with its reason."""
    return root.with_name(f"{root.name}.failures.csv")


def download_images(
    selections: Sequence[Path],
    root: Path,
    download: DownloadLimits,
    *,
    size_hint: int = 500,
    piece_photos: int = PIECE_PHOTOS,
    distributed: bool = False,
    retry_failed: bool = False,
) -> Kept:
    """Download what is missing, keep each content once, and write the table.

    Args:
        selections: tables of step 3.
        root: folder of the photos; on a cluster all machines see it.
        download: limits.
        size_hint: longest side to ask Amazon's servers for, pixels; 0 is as uploaded.
        piece_photos: photos between two records of what is done.
        distributed: whether each thousand may be fetched by another machine.
        retry_failed: try photos again that failed for a reason that may have passed.

    Raises:
        UserError: when a table is missing or nothing could be had.
    """
    from dataset.dataset_creation_steps.photos import (
        StorePlan,
        download_pieces,
        remove_leftovers,
    )

    wanted = read_selections(selections)
    root.mkdir(parents=True, exist_ok=True)
    plan = extend_plan(root, wanted, piece_photos)
    pieces = int(plan["piece"].max()) + 1 if len(plan) else 0
    remove_leftovers(root)
    download_pieces(
        StorePlan(root, ("asin", "role")),
        pieces,
        _missing(root, pieces),
        download,
        size_hint=size_hint,
        distributed=distributed,
        retry_failed=retry_failed,
    )
    return _finish(root, pieces, wanted)


def read_selections(paths: Sequence[Path]) -> pd.DataFrame:
    """The photos of one or several tables of step 3, each photo of a product once.

    Raises:
        UserError: for a missing file or column.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.snapshots import row_count

    for path in paths:
        row_count(path, SELECTION)
    table = pd.concat([pq.read_table(path, columns=SELECTION).to_pandas() for path in paths])
    table = table.sort_values(["asin", "role", "url"], kind="stable")
    return table.drop_duplicates(["asin", "url"]).reset_index(drop=True)


def extend_plan(root: Path, wanted: pd.DataFrame, piece_photos: int) -> pd.DataFrame:
    """Put what is not planned yet behind what is, in pieces of so many photos.

    Returns:
        The whole plan: asin, role, url, piece (number); its index is the photo's number.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.photos import plan_file

    path = plan_file(root)
    columns = ["asin", "role", "url", "piece"]
    old = pq.read_table(path).to_pandas() if path.is_file() else pd.DataFrame(columns=columns)
    known = pd.MultiIndex.from_frame(old[["asin", "url"]])
    new = wanted[~pd.MultiIndex.from_frame(wanted[["asin", "url"]]).isin(known)]
    if new.empty and path.is_file():
        return old
    first = int(old["piece"].max()) + 1 if len(old) else 0
    numbers = first + pd.RangeIndex(len(new)) // piece_photos
    new = new[["asin", "role", "url"]].assign(piece=numbers.to_numpy())
    plan = pd.concat([old.astype({"piece": "int64"}), new], ignore_index=True)[columns]
    with written_atomically(path) as temporary:
        table = pa.Table.from_pandas(plan, preserve_index=False)
        with pq.ParquetWriter(temporary, table.schema) as writer:
            for _, rows in plan.groupby("piece"):
                writer.write_table(table.slice(int(rows.index[0]), len(rows)))
    return plan


def _missing(root: Path, pieces: int) -> list[int]:
    """The pieces that are not done, or of which a photo has gone since."""
    from dataset.dataset_creation_steps.photos import is_stored, progress_file

    done = [piece for piece in range(pieces) if progress_file(root, piece).is_file()]
    table = _progress(root, done)
    there = table[table["reason"].isna()]
    first = dict(zip(there["sha256"][::-1], there["file"][::-1], strict=True))
    gone = {
        int(piece)
        for piece, file, digest, size in zip(
            there["piece"], there["file"], there["sha256"], there["bytes"], strict=True
        )
        if not is_stored(root, first[digest], size) and not is_stored(root, file, size)
    }
    return [piece for piece in range(pieces) if piece not in set(done) or piece in gone]


def _progress(root: Path, pieces: Sequence[int]) -> pd.DataFrame:
    """What came of the photos of some pieces, in the order of the plan."""
    import pandas as pd

    from dataset.dataset_creation_steps.photos import progress_file
    from dataset.dataset_creation_steps.snapshots import read_snapshot

    tables = [
        read_snapshot(progress_file(root, piece)).to_pandas().assign(piece=piece)
        for piece in pieces
    ]
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "piece"])
    return pd.concat(tables, ignore_index=True)


def _finish(root: Path, pieces: int, wanted: pd.DataFrame) -> Kept:
    """Delete second copies and write the tables of what is there and of what is not."""
    table = _progress(root, range(pieces))
    there = table[table["reason"].isna()]
    files = keep_one_copy(root, zip(there["file"], there["sha256"], there["bytes"], strict=True))
    # Only what is wanted now; the plan may hold more, of earlier calls.
    table = wanted.merge(table.drop(columns="role"), on=["asin", "url"], how="left")
    failed = table[~table["sha256"].isin(files)]
    photos = table[table["sha256"].isin(files)]
    photos = photos.assign(image_path=photos["sha256"].map(files), label=photos["asin"])
    # A content under several labels teaches nothing but contradiction: the best fit keeps it.
    best = photos.sort_values(["mean_cosine", "asin", "url"], ascending=[False, True, True])
    unique = best.drop_duplicates("sha256").sort_values(["label", "image_path"])
    columns = ["image_path", "label", "role", "url", "mean_cosine", "sha256", "bytes"]
    with written_atomically(table_file(root)) as temporary:
        unique[columns].to_parquet(temporary, index=False)
    with written_atomically(failures_file(root)) as temporary:
        failed[["asin", "role", "url", "reason"]].to_csv(temporary, index=False)
    if unique.empty:
        raise UserError(f"no photo could be had; {failures_file(root)} has the reasons")
    return Kept(len(unique), len(photos) - len(unique), Counter(failed["reason"].astype(str)))


def keep_one_copy(root: Path, photos: Iterable[tuple[str, str, int]]) -> dict[str, str]:
    """Of each content the file that its first row has; later copies are deleted.

    Args:
        root: of the store.
        photos: file, SHA-256 and size, in the order of the rows.

    Returns:
        File by SHA-256, of the contents that are there.
    """
    from dataset.dataset_creation_steps.photos import is_stored

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


def main() -> None:
    """Download and say what there is."""
    arguments = parse_arguments()
    start_engine(arguments.runner, arguments.ray_address)
    root: Path = arguments.output
    kept = download_images(
        arguments.selections,
        root,
        limits(arguments),
        size_hint=arguments.size_hint,
        piece_photos=arguments.piece_photos,
        distributed=arguments.runner == "ray",
        retry_failed=arguments.retry_failed,
    )
    for reason, count in kept.failures.most_common(10):
        print(f"{count:8d} not there: {reason}")
    print(
        f"{kept.photos} photos in {root}, {kept.duplicates} copies of others left out, "
        f"{kept.failures.total()} could not be had ({failures_file(root)}); table: "
        f"{table_file(root)}"
    )
    print(
        "next: python dataset/dataset_creation_steps/prepare_training_set.py "
        f"{table_file(root)} --evaluation dataset/development_test_data"
    )


if __name__ == "__main__":
    exit_with_sentence(main)
