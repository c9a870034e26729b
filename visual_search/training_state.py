"""Everything a killed run needs to continue as if nothing had happened.

A state is a folder `state/step-00000120/`: `common.pt` (what all processes share), `rank-0.pt`, …
(what is each one's own) and, written last, `complete.json`. A folder without it is half-written
and is never loaded. The files hold tensors and plain values and are read with `weights_only`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visual_search.common.errors import UserError
from visual_search.common.files import write_json, written_atomically

STATE_FORMAT = 1
"""Raised when an older reader would misread the files."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    count: int
    wait: Callable[[], None]
    """Returns when all of them have called it."""


def save_state(
    folder: Path, step: int, common: dict[str, Any], own: dict[str, Any], processes: Processes
) -> None:
    """Write a state and remove those before it; killed in between, one whole state remains.

    Args:
        folder: of all states of the run.
        step: optimiser steps so far; names the state.
        common: equal in all processes; the first one writes it.
        own: of this process.
        processes: who writes together.
    """
    place = folder / f"step-{step:08d}"
    if processes.rank == 0:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    processes.wait()
    with written_atomically(place / f"rank-{processes.rank}.pt") as temporary:
        torch.save(own, temporary)
    if processes.rank == 0:
        with written_atomically(place / "common.pt") as temporary:
            torch.save(common, temporary)
    processes.wait()
    if processes.rank == 0:
        facts = {"format": STATE_FORMAT, "step": step, "processes": processes.count}
        write_json(place / "complete.json", facts)
        for other in folder.glob("step-*"):
            if other != place:
                _remove(other)
    processes.wait()


def newest_state(folder: Path) -> Path | None:
    """The newest complete state in a run's folder of states."""
    complete = sorted(path.parent for path in folder.glob("step-*/complete.json"))
    return complete[-1] if complete else None


def load_state(place: Path, processes: Processes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What :func:`save_state` was given: the common part and this process's own.

    Raises:
        UserError: when the state is damaged, of a newer kit or of another number of processes.
    """
    import json

    facts = json.loads((place / "complete.json").read_text("utf-8"))
    if facts["format"] > STATE_FORMAT:
        raise UserError(f"{place} is of a newer kit; update, or start anew with --overwrite true")
    if facts["processes"] != processes.count:
        raise UserError(
            f"{place.parent.parent} was trained by {facts['processes']} processes, this is one of "
            f"{processes.count}; continue it with as many, or start anew with --overwrite true"
        )
    parts = []
    for name in ("common.pt", f"rank-{processes.rank}.pt"):
        try:
            parts.append(torch.load(place / name, map_location="cpu", weights_only=True))
        except Exception as error:  # unpicklers raise nearly anything on damaged files
            raise UserError(
                f"{place / name} is damaged ({error}); start anew with --overwrite true"
            ) from error
    return parts[0], parts[1]


def random_states() -> dict[str, Any]:
    """The states of all random generators that training draws from, as plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), [int(key) for key in keys], position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the generators back where :func:`random_states` found them."""
    torch.set_rng_state(states["torch"])
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _remove(place: Path) -> None:
    # First the mark, so that a removal cut short leaves nothing that looks complete.
    (place / "complete.json").unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
