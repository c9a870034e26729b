"""A table of a folder of images: one folder a class, `dataset_info.csv` out.

Run from the repository root: python dataset/generate_dataset_info.py --help
"""

from __future__ import annotations

import argparse
from pathlib import Path

from visual_search.common.errors import print_next, run_command
from visual_search.common.ranges import whole_number


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="generate_dataset_info.py",
        description="Write dataset_info.csv of a folder that holds a folder of images for each "
        "class, at any depth: the label is the folder's path. Broken images go into "
        "broken_photos.csv instead, files with the same bytes are listed in duplicate_files.csv. "
        "When it was killed, the same command goes on where it was.",
    )
    add = parser.add_argument
    add("--dataset_path", type=Path, required=True, help="folder of the class folders")
    add(
        "--save_path",
        type=Path,
        help="folder of the tables; paths in them are relative to it (default: the dataset_path)",
    )
    add(
        "--hashes",
        action="store_true",
        help="add each image's perceptual hash, which finds near-duplicates; reads every pixel",
    )
    add(
        "--min_images",
        type=whole_number(1),
        default=1,
        help="leave out classes with fewer readable images (default: 1)",
    )
    add("--workers", type=whole_number(0), default=0, help="threads (default: by the cores)")
    return parser.parse_args(arguments)


def main() -> None:
    """Write the table and say what is in it."""
    arguments = vars(parse_arguments())
    from dataset.folder_info import describe_folder
    from visual_search.data.values import value_of

    folder, target = arguments.pop("dataset_path"), arguments.pop("save_path")
    done = describe_folder(folder, target or folder, **arguments)
    print(f"{done.table}: {done.images} images of {done.classes} classes")
    for merged, first in done.merged.items():
        print(f"the folders {first!r} and {merged!r} are one class, {value_of(first)!r}")
    for what, count in done.notes.items():
        if count:
            print(f"{count} {what}")
    if done.others:
        kinds = ", ".join(f"{count} {ending}" for ending, count in done.others.most_common(5))
        print(f"{done.others.total()} files that are no images, left out ({kinds})")
    print_next("dataset/filter_dataset_info.py", "--dataset_info", done.table, "--dedup")


if __name__ == "__main__":
    run_command(main)
