"""Find images that training and evaluation share; a score on such images proves nothing.

Run from the repository root: python dataset/find_leaks.py --help
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.options import add_threshold
from visual_search.common.errors import UserError, run_command
from visual_search.common.ranges import real_number, whole_number

if TYPE_CHECKING:
    import numpy as np

    from visual_search.data.leaks import Cosines, Leak


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="find_leaks.py",
        description="Look for near-duplicates between training and evaluation images, by "
        "perceptual hash, confirmed by embedding. Writes leaks.csv and, where there are any, the "
        "page leaks.html; the record beside each training table keeps training from "
        "warning. Tables: dataset_info.csv, folds.csv, Amazon pairs, the challenge's gallery.csv "
        "and queries.csv, Product10K's lists. Of a table with rows of both kinds, --train takes "
        "those that train and --test the others.",
    )
    add = parser.add_argument
    add("--train", type=Path, nargs="+", required=True, help="training tables")
    add("--test", type=Path, nargs="+", required=True, help="evaluation tables")
    add("--train_root", type=Path, help="folder of --train's paths (its own)")
    add("--test_root", type=Path, help="folder of --test's paths (its own)")
    add(
        "--fold",
        type=whole_number(-1),
        default=-1,
        help="of a folds.csv, the fold that is held out",
    )
    add(
        "--test_fold",
        type=whole_number(-1),
        help="the same of --test's tables, where it is another (--fold)",
    )
    add_threshold(parser, "the hashes differ")
    add(
        "--embeddings",
        type=Path,
        metavar="RUN_OR_EXPORT",
        help="model that compares the pairs found: a run, a checkpoint, or an export",
    )
    add(
        "--cosine",
        type=real_number(-1, 1),
        default=0.9,
        help="of the two embeddings, from which on a pair is confirmed (default: 0.9)",
    )
    add("--save_path", type=Path, help="folder of leaks.csv (default: that of the first --train)")
    return parser.parse_args(arguments)


def cosines_by(model: Path) -> Cosines:
    """Compare whole images by the embeddings of a model; each image is embedded once."""
    from visual_search.data.images import ImageItem
    from visual_search.model.checkpoint import load_checkpoint
    from visual_search.ranking.embed import default_device, embed_images

    found = load_checkpoint(model)
    device = default_device()
    embedder = found.embedder().to(device)

    def compare(first: Sequence[Path], second: Sequence[Path]) -> np.ndarray:
        place = {path: i for i, path in enumerate(dict.fromkeys([*first, *second]))}
        items = [ImageItem(path) for path in place]
        size = found.architecture.input_size
        matrix = embed_images(embedder, items, size, device=device, label="images of pairs").matrix
        left, right = ([place[path] for path in side] for side in (first, second))
        return (matrix[left] * matrix[right]).sum(dim=1).numpy()

    return compare


def main() -> None:
    """Compare each training table with each evaluation table, and keep the record."""
    arguments = parse_arguments()
    import pandas as pd

    from dataset.contact_sheet import draw_groups
    from visual_search.common.files import write_csv
    from visual_search.data.leak_record import Side, record
    from visual_search.data.leaks import Leak, find_leaks, list_images

    for option in ("train", "test"):
        files = [file.resolve() for file in getattr(arguments, option)]
        if len(set(files)) < len(files):
            raise UserError(f"--{option} names a table twice")
    cosines = cosines_by(arguments.embeddings) if arguments.embeddings else None
    fold = arguments.fold if arguments.test_fold is None else arguments.test_fold
    tests = {file: list_images(file, arguments.test_root, False, fold) for file in arguments.test}
    found: list[Leak] = []
    for file in arguments.train:
        train = list_images(file, arguments.train_root, True, arguments.fold)
        for other, test in tests.items():
            if file.samefile(other) and train.paths == test.paths:
                raise UserError(
                    f"{file} is named on both sides and holds out no row, so that every image "
                    "would equal itself: name the fold that is held out with --fold"
                )
            leaks = find_leaks(train, test, arguments.threshold, cosines, arguments.cosine)
            images = len({leak.test_photo for leak in leaks if leak.confirmed is not False})
            print(
                f"{file} and {other}: {images} of {len(test.paths)} evaluation images are "
                f"{'near-duplicates' if cosines is None else 'confirmed near-duplicates'} of "
                f"training images ({len(leaks)} pairs within {arguments.threshold} bits)"
            )
            unreadable = train.unreadable + test.unreadable
            if unreadable:
                print(f"  {unreadable} images cannot be read and were not compared")
            facts = {
                "threshold": arguments.threshold,
                "pairs": len(leaks),
                "evaluation_photos": images,
                "cosine": arguments.cosine if cosines else None,
                "unreadable": unreadable,
            }
            record(
                Side.of(file, arguments.train_root, train.fold),
                Side.of(other, arguments.test_root, test.fold),
                facts,
            )
            found += leaks
    folder = arguments.save_path or arguments.train[0].parent
    write_csv(folder / "leaks.csv", pd.DataFrame(found, columns=Leak._fields))
    pairs = ((leak.test_photo, leak.train_photo, _nearness(leak)) for leak in found)
    title = "Images that training and evaluation share"
    note = "Blue: an image that is judged on. Beside it the training images like it."
    drawn, _ = draw_groups(folder / "leaks.html", title, note, "query", pairs)
    if drawn:
        print(
            f"{folder / 'leaks.csv'}, {folder / 'leaks.html'} ({drawn} images drawn); next: "
            + _advice([leak.confirmed for leak in found])
        )
    else:
        print(f"{folder / 'leaks.csv'}: no leak; next: python -m visual_search.main_arcface --help")


def _nearness(leak: Leak) -> str:
    cosine = "" if leak.cosine is None else f", cosine {leak.cosine:.3f}"
    return f"{leak.distance} bits{cosine}"


def _advice(confirmed: Sequence[bool | None]) -> str:
    if any(confirmed):
        return "leave the training images of confirmed pairs out of the training table"
    if None in confirmed:
        return (
            "look at the page, for goods on white look alike to a hash (--embeddings "
            "RUN_OR_EXPORT asks a model), and leave copies out of the training table"
        )
    return "nothing: the model confirms none of the pairs"


if __name__ == "__main__":
    run_command(main)
