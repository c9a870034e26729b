"""What a training ran on: `environment.json` in a run's folder, kept so that it can be told later.

Nothing is taken from the process's environment variables, arguments or git's remotes, which may
hold passwords.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import visual_search
from visual_search.common.files import read_json, write_json
from visual_search.common.processes import available_cores

ENVIRONMENT_FILE = "environment.json"


@cache
def declared_versions() -> dict[str, str]:
    """The installed packages that the kit declares, with all its extras, by name."""
    try:
        declared = metadata.requires("visual-search") or []
    except metadata.PackageNotFoundError:  # the sources alone
        return {}
    found = {}
    for name in sorted({re.split(r"[^\w.-]", one)[0] for one in declared}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Of the kit's sources, with `+` where files are changed; empty where git does not know."""
    folder = Path(visual_search.__file__).parent.parent
    words = ("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+")
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


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


def write_environment(run: Path, device: torch.device, processes: int) -> None:
    """Write `environment.json` in the folder of a run.

    Args:
        run: the folder.
        device: that trains.
        processes: that train together.
    """
    facts = {
        "python": platform.python_version(),
        "packages": declared_versions(),
        "commit": commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": available_cores(),
        "processes": processes,
    }
    write_json(run / ENVIRONMENT_FILE, facts)


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
    return "; ".join(words)
