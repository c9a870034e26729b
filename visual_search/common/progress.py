"""Progress bars that also read well in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

# Seconds between two updates: a terminal redraws its line, a log file keeps every one.
TERMINAL_INTERVAL, LOG_INTERVAL = 0.2, 20.0


def progress_bar(
    label: str,
    unit: str,
    *,
    iterable: Iterable | None = None,
    total: int | None = None,
    initial: int = 0,
    shown: bool = True,
    unit_scale: bool = False,
) -> Any:
    """A tqdm bar on stderr; give it an `iterable`, or a `total` to count up to by hand.

    Args:
        label: what is going on.
        unit: what is counted.
        iterable: counted as it is read.
        total: where the counting ends.
        initial: where it begins, for a job that goes on.
        shown: whether there is a bar at all.
        unit_scale: write 1.2G for 1,200,000,000, as for bytes.
    """
    interval = TERMINAL_INTERVAL if sys.stderr.isatty() else LOG_INTERVAL
    return tqdm(
        iterable,
        desc=label,
        unit=unit,
        unit_scale=unit_scale,
        total=total,
        initial=initial,
        disable=not shown,
        mininterval=interval,
        maxinterval=max(interval, 10.0),
        dynamic_ncols=True,
    )
