"""A run is a folder: `runs/<name>/{config.yml, metrics.jsonl, last/, best/, plots/, …}`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from visual_search.errors import UserError
from visual_search.files import write_text, written_atomically


class RunFolder:
    """Where one run keeps what it was asked for, what it measured and what it learnt."""

    def __init__(self, root: Path, name: str) -> None:
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise UserError(f"--name {name!r}: use letters, digits, '_', '-' and '.' only")
        self.name, self.path = name, root / name
        self.best, self.last = self.path / "best", self.path / "last"
        self.metrics_file = self.path / "metrics.jsonl"

    def check_free(self, overwrite: bool) -> None:
        """Raise :class:`UserError` when a run of this name is there, unless `overwrite` is set."""
        if (self.path / "config.yml").exists() and not overwrite:
            raise UserError(
                f"{self.path} already holds a run; choose another --name, or replace it with "
                "--overwrite true"
            )

    def start(self, config: str) -> None:
        """Create the folder, empty, and save the resolved config in it."""
        if self.path.exists():
            shutil.rmtree(self.path)
        write_text(self.path / "config.yml", config)

    def log(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(values) + "\n")

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
        for group in ("head", "backbone"):
            rates.plot([s["step"] for s in steps], [s[f"lr_{group}"] for s in steps], label=group)
        rates.set(title="learning rate", xlabel="optimiser step", yscale="log")
        rates.legend()
        score.plot([s["step"] for s in scores], [s["mAP"] for s in scores], marker="o")
        score.set(title="mAP, development set", xlabel="optimiser step")
        for axes in (loss, rates, score):
            axes.grid(alpha=0.3)
        path = self.path / "plots" / "training.png"
        with written_atomically(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        return path
