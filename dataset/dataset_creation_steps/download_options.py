"""The options of downloading, alike in every step that downloads."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visual_search.downloads import DownloadLimits


def add_download_options(parser: argparse.ArgumentParser, *, size_hint: bool = True) -> None:
    """Limits, and what addresses are allowed; `size_hint` where addresses may be Amazon's."""
    group = parser.add_argument_group("downloading")
    if size_hint:
        group.add_argument(
            "--size-hint",
            type=int,
            default=500,
            metavar="PX",
            help="ask Amazon for photos of this longest side (_SL500_); 0: as uploaded "
            "(%(default)s)",
        )
    group.add_argument(
        "--rate",
        type=float,
        default=100.0,
        help="requests a second to a host; 0: any (%(default)s)",
    )
    group.add_argument(
        "--connections", type=int, default=32, help="open to a host at a time (%(default)s)"
    )
    group.add_argument(
        "--timeout", type=float, default=30.0, help="seconds for one attempt (%(default)s)"
    )
    group.add_argument(
        "--attempts", type=int, default=4, help="for errors that may pass (%(default)s)"
    )
    group.add_argument("--max-mb", type=float, default=20.0, help="of one photo (%(default)s)")
    group.add_argument(
        "--allow-private",
        action="store_true",
        help="also addresses that are not public, such as this machine's own",
    )


def add_piece_options(parser: argparse.ArgumentParser, photos: int) -> None:
    """How photos that are kept come in pieces; `photos` of one, where nothing is said."""
    parser.add_argument(
        "--piece-photos",
        type=int,
        default=photos,
        help="photos between two records of what is done (%(default)s)",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="try again what failed for a passing reason"
    )


def limits(arguments: argparse.Namespace) -> DownloadLimits:
    """The limits that the options ask for."""
    from visual_search.downloads import DownloadLimits

    return DownloadLimits(
        max_bytes=int(arguments.max_mb * 1e6),
        timeout=arguments.timeout,
        attempts=arguments.attempts,
        connections=arguments.connections,
        rate=arguments.rate,
        allow_private=arguments.allow_private,
    )
