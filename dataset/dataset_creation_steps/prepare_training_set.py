"""Step 5: the tables that a phase trains on, without photos of the evaluation sets.

python dataset/dataset_creation_steps/prepare_training_set.py dataset/images_mean_50k.parquet
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file: make the package importable from the repository root.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from visual_search.errors import UserError, exit_with_sentence
from visual_search.files import written_atomically

DEFAULT_TABLE = Path("dataset/images_mean_50k.parquet")
DEFAULT_EVALUATION = Path("dataset/development_test_data")
DEFAULT_THRESHOLDS = (0.5, 0.6)


@dataclass(frozen=True)
class TrainingTable:
    """A csv file that was written."""

    path: Path
    threshold: float
    photos: int
    labels: int


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="prepare_training_set.py",
        description="Step 5: write amazon_review_mean_05_full_images.csv and …_06_… "
        "(image_path,label) of the photos of step 4, less those that also stand in an evaluation "
        "set, and pack the photos on request.",
    )
    parser.add_argument(
        "table",
        type=Path,
        nargs="?",
        default=DEFAULT_TABLE,
        help="of download_images.py, beside the folder of the photos (%(default)s)",
    )
    parser.add_argument(
        "--threshold", type=float, nargs="+", default=DEFAULT_THRESHOLDS, help="default: 0.5 0.6"
    )
    parser.add_argument(
        "--min-images", type=int, default=2, help="photos a product must have (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help="folder of the tables (default: the table's)")
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="*",
        help="folders of photos that must not be trained on (default: "
        f"{DEFAULT_EVALUATION} where it exists)",
    )
    parser.add_argument(
        "--distance",
        type=int,
        default=4,
        help="bits in which the 64-bit hashes of near-duplicates differ at most (%(default)s)",
    )
    parser.add_argument("--pack", action="store_true", help="also write the photos as tar parts")
    parser.add_argument(
        "--part-size", type=float, default=1900, help="of a tar part, MB (%(default)s)"
    )
    return parser.parse_args(arguments)


def csv_name(threshold: float) -> str:
    """`amazon_review_mean_05_full_images.csv` for 0.5."""
    from dataset.dataset_creation_steps.mean_cosines import threshold_name

    return f"amazon_review_mean_{threshold_name(threshold)}_full_images.csv"


def prepare_training_set(
    table: Path,
    output: Path,
    thresholds: Sequence[float],
    evaluation: Sequence[Path],
    *,
    min_images: int = 2,
    distance: int = 4,
) -> list[TrainingTable]:
    """Write a table for each threshold, and `leaks.csv` of what was left out.

    Args:
        table: of step 4; the photos lie in the folder of its name without `.parquet`.
        output: folder of the tables.
        thresholds: of the mean cosine; a photo's has to be above it.
        evaluation: folders of photos; what looks like one of them is left out.
        min_images: photos a label must have.
        distance: bits; see :func:`visual_search.near_duplicates.pairs_within`.

    Raises:
        UserError: when a file is missing, or nothing is left.
    """
    import pandas as pd

    from dataset.dataset_creation_steps.leaks import find_leaks
    from dataset.dataset_creation_steps.snapshots import row_count

    row_count(table, ["image_path", "label", "mean_cosine", "sha256"])
    photos = pd.read_parquet(table).sort_values(["label", "image_path"])
    root = table.with_suffix("")
    leaks = find_leaks(root, photos, evaluation, distance)
    with written_atomically(output / "amazon_review_leaks.csv") as temporary:
        leaks.to_csv(temporary, index=False)
    photos = photos[~photos["image_path"].isin(leaks["image_path"])]
    written = []
    for threshold in thresholds:
        kept = photos[photos["mean_cosine"] > threshold]
        kept = kept[kept.groupby("label")["label"].transform("size") >= min_images]
        if kept.empty:
            raise UserError(f"no product has {min_images} photos above {threshold:g} in {table}")
        path = output / csv_name(threshold)
        with written_atomically(path) as temporary:
            kept[["image_path", "label"]].to_csv(temporary, index=False)
        written.append(TrainingTable(path, threshold, len(kept), kept["label"].nunique()))
    return written


def pack_photos(tables: Sequence[TrainingTable], root: Path, part_size: int) -> list[Path]:
    """The photos of all tables as `images_mean_50k_<thousands of photos>.tar.partaa`, ….

    Args:
        tables: that were written.
        root: folder of the photos.
        part_size: bytes.
    """
    import pandas as pd

    from dataset.dataset_creation_steps.packing import pack

    files = set().union(*(pd.read_csv(table.path, dtype=str)["image_path"] for table in tables))
    stem = root.with_name(f"{root.name}_{max(1, round(len(files) / 1000))}.tar")
    return pack(root, files, stem, part_size)


def main() -> None:
    """Write the tables, pack on request, and say what there is."""
    arguments = parse_arguments()
    table: Path = arguments.table
    evaluation = arguments.evaluation
    if evaluation is None:
        evaluation = [DEFAULT_EVALUATION] if DEFAULT_EVALUATION.is_dir() else []
    output = arguments.output or table.parent
    written = prepare_training_set(
        table,
        output,
        arguments.threshold,
        evaluation,
        min_images=arguments.min_images,
        distance=arguments.distance,
    )
    if not evaluation:
        print("no evaluation set was named: the photos are not checked for leaks")
    for made in written:
        print(f"{made.path}: {made.photos} photos of {made.labels} products")
    root = table.with_suffix("")
    if arguments.pack:
        parts = pack_photos(written, root, int(arguments.part_size * 1e6))
        print(
            f"{parts[0]} … {parts[-1].name}: {len(parts)} parts; join them with dataset/unpack.py"
        )
    print(f"next: python -m visual_search.main_phases --config config/phases.yml (photos: {root})")


if __name__ == "__main__":
    exit_with_sentence(main)
