"""What several of the tools' command lines have in common."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from visual_search.common.ranges import Range


def whole_number(low: int, high: float = math.inf) -> Callable[[str], int]:
    """The `type` of an option that is a whole number from `low` to `high`."""
    wanted = Range(low, high)

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number not in wanted:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number, {wanted}")
        return number

    return read


def add_random_seed(parser: argparse.ArgumentParser) -> None:
    """`--random_seed`; numpy wants it to be 0 or above."""
    parser.add_argument(
        "--random_seed", type=whole_number(0), default=28, help="of every random draw (default: 28)"
    )


def add_threshold(parser: argparse.ArgumentParser, words: str) -> None:
    """`--threshold`, of perceptual hashes."""
    parser.add_argument(
        "--threshold",
        type=whole_number(0, 64),
        default=10,
        help=f"most bits, of 64, in which {words} (default: 10)",
    )
