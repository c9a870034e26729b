"""A run is a folder: `runs/<name>/{config.yml, metrics.jsonl, last/, best/, plots/, …}`."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from visual_search.common.errors import UserError
from visual_search.common.files import (
    naming,
    read_json,
    write_figure,
    write_json,
    write_text,
    written_atomically,
)
from visual_search.common.locks import alone

if TYPE_CHECKING:
    from accelerate import Accelerator

NAME = re.compile(r"\w[\w.-]*")
NAME_RULE = "use letters, digits, '_', '-' and '.' only, a letter, a digit or '_' in front"
FREE_TO_CHANGE = {
    "rerank",
    "dataset.num_workers",
    "dataset.max_broken_share",
    "train.feature_cache",
    "train.log_steps",
    "train.save_minutes",
    "train.save_steps",
    "train.trackers",
}
"""Settings that change no weight: a run may be continued with others."""


class RunFolder:
    """Where one run keeps what it was asked for, what it measured and what it learnt."""

    def __init__(self, root: Path, name: str) -> None:
        if not NAME.fullmatch(name):
            raise UserError(f"--name {name!r}: {NAME_RULE}")
        self.name, self.path = name, root / name
        self.best, self.last = self.path / "best", self.path / "last"
        self.metrics_file = self.path / "metrics.jsonl"

    def check(self, config: str, overwrite: bool) -> bool:
        """Whether this is an unfinished run that the same settings continue.

        Args:
            config: the resolved settings, as YAML.
            overwrite: replace a run of that name, finished or not.

        Raises:
            UserError: when a run of that name is finished, or was started with other settings, and
                when something else has that name.
        """
        saved = self.path / "config.yml"
        self._refuse_others()
        if overwrite or not saved.exists():
            return False
        advice = "choose another --name, or replace it with --overwrite true"
        if (self.path / "result.json").exists():
            raise UserError(f"{self.path} already holds a finished run; {advice}")
        changes = changed_keys(saved.read_text("utf-8"), config)
        if changes:
            raise UserError(
                f"{self.path} was started with other settings ({'; '.join(changes[:5])}): "
                f"continue it with the same, {advice}"
            )
        return True

    def killed_at_its_end(self, config: str) -> float | None:
        """The mAP of a run that was killed between its result and the removal of its states.

        Args:
            config: the resolved settings, as YAML; None is returned for others, too.
        """
        saved, result = self.path / "config.yml", self.path / "result.json"
        if not (result.is_file() and saved.is_file() and (self.path / "state").is_dir()):
            return None
        if changed_keys(saved.read_text("utf-8"), config):
            return None
        return float(read_json(result)["mAP"])

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`; what an unfinished run needs goes."""
        write_json(self.path / "result.json", {"finished": True, **result})
        self.drop_states()

    def drop_states(self) -> None:
        """Remove what only an unfinished run needs."""
        for name in ("soup", "state"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _refuse_others(self) -> None:
        """Raise a UserError where a link, a file or a folder that is no run has the name."""
        if self.path.is_symlink():
            raise UserError(f"{self.path} is a link; name the run that it leads to, or another")
        if not self.path.exists() or (self.path / "config.yml").is_file():
            return
        # A run that was killed at once has left an empty folder, or a temporary file.
        if not self.path.is_dir() or any(p.suffix != ".tmp" for p in self.path.iterdir()):
            raise UserError(
                f"{self.path} is no run, since it has no config.yml, and is left as it is; "
                "choose another --name"
            )

    def start(self, config: str) -> None:
        """Create the folder, empty, and save the resolved config in it.

        Raises:
            UserError: when what has that name is no run.
        """
        self._refuse_others()
        if self.path.exists():  # first aside, so that no half of a run is ever left
            aside = Path(tempfile.mkdtemp(prefix=f".{self.name}.", dir=self.path.parent))
            self.path.rename(aside / self.name)
            shutil.rmtree(aside)
        write_text(self.path / "config.yml", config)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes away from the run till the end of the block, or of this process.

        Files that a killed one has begun are removed.

        Raises:
            UserError: when another process has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        busy = (
            f"{self.path} is in use: another process is at work on it; wait until it ends, or "
            "choose another name"
        )
        with alone(self.path.parent / f".{self.name}.lock", busy):
            for begun in filter(Path.is_file, self.path.rglob(".*.tmp")):
                begun.unlink(missing_ok=True)
            yield

    def log(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(values) + "\n")

    def metrics_bytes(self) -> int:
        """Length of `metrics.jsonl` so far."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def cut_metrics(self, length: int) -> None:
        """Drop the lines that were written after the state that the run continues from."""
        if self.metrics_bytes() > length:
            with self.metrics_file.open("r+b") as handle:
                handle.truncate(length)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` so far."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text("utf-8").splitlines()]

    def plot(self) -> Path:
        """Draw loss, learning rates and mAP over the steps to `plots/training.png`."""
        from matplotlib.figure import Figure

        lines = self.metrics()
        steps = [line for line in lines if line["kind"] == "step"]
        scores = [line for line in lines if line["kind"] == "validation"]
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        loss, rates, score = figure.subplots(1, 3)
        loss.plot([line["step"] for line in steps], [line["loss"] for line in steps])
        loss.set(title="training loss", xlabel="optimiser step")
        drawn = {name: [s[f"lr_{name}"] for s in steps] for name in ("head", "backbone")}
        for name, values in drawn.items():
            rates.plot([s["step"] for s in steps], values, label=name)
        scale = "log" if any(map(any, drawn.values())) else "linear"
        rates.set(title="learning rate", xlabel="optimiser step", yscale=scale)
        rates.legend()
        score.plot([s["step"] for s in scores], [s["mAP"] for s in scores], marker="o")
        score.set(title="mAP, development set", xlabel="optimiser step")
        for axes in (loss, rates, score):
            axes.grid(alpha=0.3)
        path = self.path / "plots" / "training.png"
        write_figure(path, figure)
        return path


OFF: tuple[Any, ...] = (None, False, 0, "", "none", [], {})
"""What a setting is where it changes nothing; one that came with a later version starts so."""


def changed_keys(before: str, after: str) -> list[str]:
    """The settings that differ between two resolved configs, `key: old -> new`.

    Those that change no weight are left out: :data:`FREE_TO_CHANGE`, the settings of a head that
    neither has, and what only one version of the kit knows and is off in the other.
    """
    old, new = (flat_settings(yaml.safe_load(text) or {}) for text in (before, after))
    headless = old.get("margin.weight") == new.get("margin.weight") == 0
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
        and key not in FREE_TO_CHANGE
        and not (headless and key.startswith("margin."))
        and not ((key not in old or key not in new) and old.get(key, new.get(key)) in OFF)
    ]


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flat_settings(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


STATE_FORMAT = 2
"""Raised when an older reader would misread the files."""


def save_state(
    folder: Path, step: int, common: dict[str, Any], own: dict[str, Any], processes: Accelerator
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
    if (place / "complete.json").is_file():  # two of one step: the first stays until the second is
        place = folder / f"{place.name}-again"
    processes.wait_for_everyone()  # all have looked before one writes
    if processes.process_index == 0:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    processes.wait_for_everyone()
    with written_atomically(place / f"rank-{processes.process_index}.pt") as temporary:
        torch.save(own, temporary)
    if processes.process_index == 0:
        with written_atomically(place / "common.pt") as temporary:
            torch.save(common, temporary)
    processes.wait_for_everyone()
    if processes.process_index == 0:
        facts = {"format": STATE_FORMAT, "step": step, "processes": processes.num_processes}
        write_json(place / "complete.json", facts)
        for other in folder.glob("step-*"):
            if other != place:
                _remove(other)
    processes.wait_for_everyone()


def newest_state(folder: Path) -> Path | None:
    """The newest complete state in a run's folder of states."""
    complete = sorted(path.parent for path in folder.glob("step-*/complete.json"))
    return complete[-1] if complete else None


def load_state(place: Path, processes: Accelerator) -> tuple[dict[str, Any], dict[str, Any]]:
    """What :func:`save_state` was given: the common part and this process's own.

    Raises:
        UserError: when the state is damaged, of a newer kit or of another number of processes.
    """

    facts = read_json(place / "complete.json")
    if facts["format"] > STATE_FORMAT:
        raise UserError(f"{place} is of a newer kit; update, or start anew with --overwrite true")
    if facts["processes"] != processes.num_processes:
        raise UserError(
            f"{place.parent.parent} was trained by {facts['processes']} processes, this is one of "
            f"{processes.num_processes}; continue it with as many, or start anew with --overwrite "
            "true"
        )
    parts = []
    for name in ("common.pt", f"rank-{processes.process_index}.pt"):
        try:
            parts.append(torch.load(place / name, map_location="cpu", weights_only=True))
        except Exception as error:  # unpicklers raise nearly anything on damaged files
            raise UserError(
                f"{place / name} is damaged ({error}); start anew with --overwrite true"
            ) from error
    return parts[0], parts[1]


def random_states() -> dict[str, torch.Tensor]:
    """The states of torch's random generators: training draws from no others."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the generators back where :func:`random_states` found them."""
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _remove(place: Path) -> None:
    # First the mark, so that a removal cut short leaves nothing that looks complete.
    (place / "complete.json").unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
