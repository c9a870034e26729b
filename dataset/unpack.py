"""Unpack an archive that is shipped in parts, such as the review photos.

Run from the repository root: python dataset/unpack.py --help
"""

from __future__ import annotations

import argparse
from pathlib import Path

from visual_search.common.errors import exit_with_sentence


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="unpack.py",
        description="Join the parts of a tar archive (<archive>.parta*, .tar.partaa, .part00 …) "
        "as a stream and unpack it safely. A run that was stopped goes on when it is called again.",
    )
    parser.add_argument(
        "archive",
        type=Path,
        help="what stands in front of .part…, such as dataset/images_mean_50k_800",
    )
    parser.add_argument(
        "--output", type=Path, help="folder that gets the contents (default: that of the parts)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Unpack, and say what there is."""
    arguments = parse_arguments()
    from dataset.archives import unpack_parts

    output = arguments.output or arguments.archive.parent
    done = unpack_parts(arguments.archive, output)
    print(
        f"{output}: {done.written} files unpacked, {done.kept} were there already; the parts "
        "are no longer needed. Name the photos' folder as `root` of the table that lists them "
        "(dataset.tables, see dataset/README.md)."
    )


if __name__ == "__main__":
    exit_with_sentence(main)
