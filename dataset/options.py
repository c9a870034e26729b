"""What several of the tools' command lines have in common."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import UserError, print_next
from visual_search.common.ranges import real_number, whole_number

if TYPE_CHECKING:
    import jsonargparse


def parsed(parser: jsonargparse.ArgumentParser) -> dict[str, Any]:
    """The command line with its YAML, less `config`; what is wrong with it is a UserError."""
    import jsonargparse

    try:
        arguments = parser.parse_args()
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    values: dict[str, Any] = parser.instantiate(arguments).as_dict()
    values.pop("config", None)
    return values


def print_training(train: Path, test: Path, fold: int | None = None) -> None:
    """Say how to train on a split that was written."""
    table = {"file": str(train), **({} if fold is None else {"fold": fold})}
    print_next(
        *("-m", "visual_search.main_arcface", "--config", "config/own/lite0.yml", "--name", "own"),
        *("--dataset.tables", json.dumps([table], ensure_ascii=False)),
        *("--dataset.dev_set.table", test),
        *(() if fold is None else ("--dataset.dev_set.fold", fold)),
    )


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


def add_mean_cosine_options(parser: argparse.ArgumentParser, verb: str) -> None:
    """`--threshold` of an image's mean cosine with its product's others, and `--min-images`."""
    add, kind = parser.add_argument, real_number(-1, 1)
    add("--threshold", type=kind, nargs="+", default=(0.5, 0.6), help="default: 0.5 0.6")
    words = f"images a product must {verb} (%(default)s)"
    add("--min-images", type=whole_number(1), default=2, help=words)
