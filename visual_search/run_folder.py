"""A run is a folder: `runs/<name>/{config.yml, metrics.jsonl, last/, best/, plots/, …}`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from visual_search.common.errors import UserError
from visual_search.common.files import write_text, written_atomically

FREE_TO_CHANGE = {
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
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise UserError(f"--name {name!r}: use letters, digits, '_', '-' and '.' only")
        self.name, self.path = name, root / name
        self.best, self.last = self.path / "best", self.path / "last"
        self.metrics_file = self.path / "metrics.jsonl"

    def check(self, config: str, overwrite: bool) -> bool:
        """Whether this is an unfinished run that the same settings continue.

        Args:
            config: the resolved settings, as YAML.
            overwrite: replace a run of that name, finished or not.

        Raises:
            UserError: when a run of that name is finished, or was started with other settings.
        """
        saved = self.path / "config.yml"
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

    def start(self, config: str) -> None:
        """Create the folder, empty, and save the resolved config in it."""
        if self.path.exists():
            shutil.rmtree(self.path)
        write_text(self.path / "config.yml", config)

    def log(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as handle:
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
        with written_atomically(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        return path


def changed_keys(before: str, after: str) -> list[str]:
    """The settings that differ between two resolved configs, `key: old -> new`.

    Those that change no weight are left out: :data:`FREE_TO_CHANGE`.
    """
    old, new = (flat_settings(yaml.safe_load(text) or {}) for text in (before, after))
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and key not in FREE_TO_CHANGE
    ]


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flat_settings(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
