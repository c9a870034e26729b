"""Progress bars that also read well in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

# Seconds between two updates: a terminal redraws its line, a log file keeps every one.
TERMINAL_INTERVAL, LOG_INTERVAL = 0.2, 20.0


def progress_bar(label: str, unit: str, *, shown: bool = True, **more: Any) -> Any:
    """A tqdm bar on stderr.

    Args:
        label: what is going on.
        unit: what is counted.
        shown: whether there is a bar at all.
        more: of tqdm: an `iterable`, or a `total` to count up to by hand; `initial`; `unit_scale`.
    """
    interval = TERMINAL_INTERVAL if sys.stderr.isatty() else LOG_INTERVAL
    return tqdm(
        desc=label,
        unit=unit,
        disable=not shown,
        mininterval=interval,
        maxinterval=max(interval, 10.0),
        dynamic_ncols=True,
        **more,
    )
