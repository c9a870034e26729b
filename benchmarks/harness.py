"""Timing both sides alike, and keeping the record: RESULTS.md and results/<name>.json."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import multiprocessing
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from visual_search.common.errors import UserError
from visual_search.common.files import write_json, write_text

FOLDER = Path(__file__).resolve().parent
MB = 1e6


@dataclass(frozen=True)
class Row:
    """One figure of ours beside one of a peer's."""

    case: str
    ours: float
    peer: str
    """Package and version, or what else it is compared with."""
    peer_value: float | None
    """None where the peer cannot do it, or there is none."""
    unit: str
    ratio: float | None
    """Above 1: ours is better."""


def lower_is_better(case: str, ours: float, peer: str, peer_value: float | None, unit: str) -> Row:
    """A row of seconds, bytes and their like."""
    ratio = None if peer_value is None else peer_value / max(ours, 1e-12)
    return Row(case, ours, peer, peer_value, unit, ratio)


def higher_is_better(case: str, ours: float, peer: str, peer_value: float | None, unit: str) -> Row:
    """A row of rates."""
    ratio = None if peer_value is None else ours / max(peer_value, 1e-12)
    return Row(case, ours, peer, peer_value, unit, ratio)


def arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark can be told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=2, help="CPU threads of both sides")
    add("--repeats", type=int, default=7, help="timed runs; the median counts")
    add("--quick", action="store_true", help="small sizes, to see that it runs; records nothing")
    add("--no-record", action="store_true", help="print only; leave RESULTS.md as it is")
    return parser


def peer_module(name: str) -> ModuleType:
    """Import a package to compare with.

    Raises:
        UserError: when it is not installed, naming the extra.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"the package {package} is not installed: pip install -e '.[bench]'"
        ) from error


def alternating_medians(
    calls: Sequence[Callable[[], Any]], repeats: int, warm_up: int = 2
) -> list[float]:
    """Median seconds of each call, run in turns so that all meet the same weather.

    In another order each round, or one of them would always follow the heaviest. Each returns
    when its work is done: on a GPU it has to wait for that.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    turns, orders = list(zip(calls, seconds, strict=True)), random.Random(0)
    for number in range(warm_up + repeats):
        for call, taken in orders.sample(turns, len(turns)):
            start = time.perf_counter()
            call()
            if number >= warm_up:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def extra_memory(
    make: Callable[..., Callable[[], Any]],
    *given: Any,
    warm_up: tuple[Any, ...] | None = None,
    own_process: bool = True,
) -> float:
    """Bytes that a step takes beyond what its inputs and weights do, at its peak.

    In a process of its own, so that no earlier work lends it memory: `make(*given)`, a function at
    the top of a module, builds inputs and weights and returns the step; the figure is the peak
    resident memory over three steps, less the memory before. Gradients that a step leaves behind
    count. `warm_up` is a small case that is run first: kernels that libraries load into memory on
    their first use are not the step's. Without its own process the start of one is saved, and what
    was lent may be missed.
    """
    if not own_process:
        return _extra_memory(make, given, warm_up)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_extra_memory, make, given, warm_up).result()


def _extra_memory(
    make: Callable[..., Callable[[], Any]], given: tuple[Any, ...], warm_up: tuple[Any, ...] | None
) -> float:
    if warm_up is not None:
        make(*warm_up)()
    step = make(*given)
    before = _forget_peak()
    for _ in range(3):
        step()
    return max(0.0, peak_resident() - before)


def _forget_peak() -> float:
    """Start counting the peak anew; the memory held now, bytes."""
    # What building the inputs freed but the C library kept would else be lent to the step.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_resident()


def peak_resident() -> float:
    """Peak resident memory of this process (Linux's), bytes; since :func:`_forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * float(status.partition("VmHWM:")[2].split()[0])


def processor() -> str:
    """The CPU's name and what of it may be used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {len(os.sched_getaffinity(0))} cores"


def text_table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| case | ours | peer | peer's | unit | ratio |", "|---|---:|---|---:|---|---:|"]
    for row in rows:
        peer_value = "-" if row.peer_value is None else f"{row.peer_value:.4g}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(
            f"| {row.case} | {row.ours:.4g} | {row.peer} | {peer_value} | {row.unit} | {ratio} |"
        )
    return "\n".join(lines)


HEADING = """# Measured

Ratios above 1: ours is better. A *limit* is the most that we allow ourselves; *to reach* and
*the aim* are the least. Every section is written by `python -m benchmarks.<its name>` on the
machine it names. A section is of the day it was recorded on, and of the code of that day:
`git log -L` tells, and newer code may differ.
"""


def record(name: str, rows: Sequence[Row], notes: Sequence[str], folder: Path = FOLDER) -> None:
    """Rewrite the section of one benchmark in RESULTS.md, and its `results/<name>.json`."""
    write_json(folder / "results" / f"{name}.json", [asdict(row) for row in rows])
    path = folder / "RESULTS.md"
    before = path.read_text(encoding="utf-8") if path.exists() else HEADING
    lines = [f"- {note}" for note in notes]
    section = "\n".join([f"## {name}", "", text_table(rows), "", *lines])
    write_text(path, with_section(before, name, section))


def with_section(text: str, name: str, section: str) -> str:
    """`text` with the part between the marks of `name` replaced, or a new one at its end."""
    first, last = f"<!-- {name}: written by its benchmark -->", f"<!-- end of {name} -->"
    block = f"{first}\n{section.strip()}\n{last}\n"
    head, found, rest = text.partition(f"{first}\n")
    if not found:
        return f"{text.rstrip()}\n\n{block}"
    return head + block + rest.partition(f"{last}\n")[2]


def report(
    name: str, rows: Sequence[Row], notes: Sequence[str], options: argparse.Namespace
) -> None:
    """Print the table and, unless told otherwise, keep it."""
    print(text_table(rows))
    for note in notes:
        print(f"- {note}")
    if not (options.quick or options.no_record):
        record(name, rows, notes)
