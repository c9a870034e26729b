"""What a training ran on: `environment.json` in a run's folder, kept so that it can be told later.

Nothing is taken from the process's environment variables, arguments or git's remotes, which may
hold passwords.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

import visual_search
from visual_search.common.files import read_json, write_json
from visual_search.common.processes import available_cores

ENVIRONMENT_FILE = "environment.json"
SKIPPED, MEASURED = 2, 20
"""Steps at the start of a process that are passed over, and then timed: the first are slower."""

Batch = TypeVar("Batch")


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Versions, commit and machine, as JSON values.

    Args:
        device: that trains.
        processes: that train together.
    """
    return {
        "python": platform.python_version(),
        "packages": declared_versions(),
        "commit": commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": available_cores(),
        "processes": processes,
    }


def declared_versions() -> dict[str, str]:
    """The installed packages that the kit declares, with all its extras, by name."""
    try:
        declared = metadata.requires("visual-search") or []
    except metadata.PackageNotFoundError:  # the sources alone
        return {}
    found = {}
    for name in sorted({_name_of(one) for one in declared}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _name_of(requirement: str) -> str:
    """`accelerate` of `accelerate>=1.4; extra == "train"`."""
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), None)
    return requirement[:end]


def commit() -> str:
    """Of the kit's sources, with `+` where files are changed; empty where git does not know."""
    folder = Path(visual_search.__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def device_name(device: torch.device) -> str:
    """The card, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class StartSpeed:
    """Times the first steps of a process: whole, and less the wait for images.

    The bound is what the model alone would do, were every batch there at once.
    """

    def __init__(self, run: Path, accelerator: Accelerator, batch_size: int) -> None:
        """
        Args:
            run: its folder; the first process writes `environment.json` in it, now and again with
                the speed.
            accelerator: the device, and how many processes train together.
            batch_size: images of a batch of one process.
        """
        self.file, writes = run / ENVIRONMENT_FILE, accelerator.is_main_process
        self.device, processes = accelerator.device, accelerator.num_processes
        self.batch_size = batch_size * processes
        self.facts = environment(self.device, processes) if writes else {}
        self.steps: list[tuple[float, float, float]] = []
        """Images, seconds of waiting for them, and seconds of the model."""
        self.written = not writes
        if writes:
            write_json(self.file, self.facts)

    def timed(self, groups: Iterable[Sequence[Batch]]) -> Iterator[Sequence[Batch]]:
        """The groups of batches that are a step each, as they come."""
        remaining = iter(groups)
        while not self.written:
            started = time.perf_counter()
            group = next(remaining, None)
            if group is None:
                break
            there = time.perf_counter()
            yield group
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            done = time.perf_counter()
            images = len(group) * self.batch_size
            self.steps.append((images, there - started, done - there))
            if len(self.steps) == SKIPPED + MEASURED:
                break
        self._write()
        yield from remaining

    def _write(self) -> None:
        """Add what was timed, where that is more than the steps that are passed over."""
        timed = self.steps[SKIPPED:]
        if self.written or not timed:
            return
        images, wait, model = (statistics.median(part) for part in zip(*timed, strict=True))
        speed = {
            "images_per_second": round(images / (wait + model), 2),
            "of_the_model_alone": round(images / model, 2),
            "steps": len(timed),
        }
        write_json(self.file, {**self.facts, "speed_at_the_start": speed})
        self.written = True


def environment_of(run: Path) -> dict[str, Any]:
    """What stands in a run's `environment.json`; nothing of one of an earlier version."""
    try:
        values = read_json(run / ENVIRONMENT_FILE)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def environment_in_words(facts: Mapping[str, Any]) -> str:
    """A line of it, for a report; of an earlier version, that it is not known."""
    if not facts:
        return "not known"
    packages = facts["packages"]
    words = [
        f"Python {facts['python']}",
        *(f"{name} {packages[name]}" for name in ("torch", "timm") if name in packages),
        f"{facts['device']}, {facts['threads']} threads",
    ]
    if facts["processes"] > 1:
        words.append(f"{facts['processes']} processes")
    if facts["commit"]:
        words.append(f"commit {facts['commit'][:12]}{'+' if facts['commit'][-1] == '+' else ''}")
    if speed := facts.get("speed_at_the_start"):
        words.append(
            f"{speed['images_per_second']:g} images/s at the start, "
            f"{speed['images_per_second'] / speed['of_the_model_alone']:.0%} of what the model "
            "alone reaches"
        )
    return "; ".join(words)
