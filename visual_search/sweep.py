"""The number of classes against the width of the embedding: many small runs, one picture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from visual_search.errors import UserError
from visual_search.files import write_json, write_text, written_atomically
from visual_search.phase_chain import phase_state, read_result
from visual_search.run_folder import RunFolder

TrainCell = Callable[[Mapping[str, Any], RunFolder], float]
"""Trains a run with these settings beside the others, or continues it; returns its mAP."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    classes: int
    """dataset.max_classes; 0 is all."""
    dimension: int
    """neck.dimension."""
    seed: int
    """dataset.seed: of the classes that are drawn, and of everything else."""

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"classes{self.classes}_dimensions{self.dimension}_seed{self.seed}"

    def settings(self, nested: Sequence[int]) -> dict[str, Any]:
        """Dotted keys and values.

        Args:
            nested: margin.nested of the config; widths that do not fit the cell's are left out.
        """
        return {
            "dataset.max_classes": self.classes,
            "neck.dimension": self.dimension,
            "dataset.seed": self.seed,
            "margin.nested": [width for width in nested if width < self.dimension],
        }


def cells(classes: Sequence[int], dimensions: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """Every combination, in the order that fills the picture evenly: seed by seed.

    Raises:
        UserError: for a number that cannot be.
    """
    if min(classes) < 0 or min(dimensions) < 1 or min(seeds) < 0:
        raise UserError(
            "--classes and --seeds must be 0 or more, --dimensions 1 or more; 0 classes are all"
        )
    return [
        Cell(number, dimension, seed)
        for seed, number, dimension in itertools.product(
            dict.fromkeys(seeds), dict.fromkeys(classes), dict.fromkeys(dimensions)
        )
    ]


def run_sweep(
    folder: Path,
    wanted: Sequence[Cell],
    nested: Sequence[int],
    resolve: Callable[[Mapping[str, Any]], str],
    train: TrainCell,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Train the cells that are not trained yet.

    Args:
        folder: of the sweep; each cell is a run folder in it.
        wanted: the cells.
        nested: margin.nested of the config.
        resolve: the complete config, as YAML, for a cell's settings.
        train: trains a cell.
        after: called after each cell that was trained.

    Raises:
        UserError: when a cell was trained with other settings.
    """
    todo = []
    for cell in wanted:
        run = RunFolder(folder, cell.name)
        state, changes = phase_state(run, resolve(cell.settings(nested)))
        if state == "changed":
            raise UserError(
                f"{run.path} was trained with other settings ({'; '.join(changes[:3])}): give "
                "another --name, or change the settings back"
            )
        if state != "finished":
            todo.append((cell, run))
    print(f"{len(wanted)} runs, {len(wanted) - len(todo)} of them finished before", flush=True)
    for number, (cell, run) in enumerate(todo, 1):
        print(f"== {number} of {len(todo)}: {cell.name}", flush=True)
        train(cell.settings(nested), run)
        after()


def write_sweep(folder: Path, title: str) -> Path:
    """Write `sweep.json`, `sweep.md` and `sweep.png` of all finished cells in the folder.

    Returns:
        The picture.

    Raises:
        UserError: when no cell is finished.
    """
    rows = finished_cells(folder)
    if not rows:
        raise UserError(f"{folder} holds no finished run yet")
    write_json(folder / "sweep.json", {"title": title, "cells": rows})
    means = _means(rows)
    write_text(folder / "sweep.md", markdown(means))
    return _plot(means, folder / "sweep.png", title)


def finished_cells(folder: Path) -> list[dict[str, Any]]:
    """Of each finished run of a sweep: classes that it trained on, dimension, seed, mAP."""
    rows = []
    for path in sorted(folder.glob("classes*_dimensions*_seed*")):
        result = read_result(path)
        if result is None:
            continue
        config = yaml.safe_load((path / "config.yml").read_text("utf-8"))
        names = json.loads((path / "classes.json").read_text("utf-8"))
        rows.append(
            {
                "classes": len(names),
                "dimension": config["neck"]["dimension"],
                "seed": config["dataset"]["seed"],
                "mAP": result["mAP"],
                "run": path.name,
            }
        )
    return rows


Means = dict[int, dict[int, tuple[float, float, int]]]
"""By dimension and number of classes: mean mAP, its standard deviation over seeds, seeds."""


def _means(rows: Sequence[Mapping[str, Any]]) -> Means:
    scores: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        scores.setdefault(row["dimension"], {}).setdefault(row["classes"], []).append(row["mAP"])
    return {
        dimension: {
            number: (
                float(np.mean(values)),
                float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                len(values),
            )
            for number, values in sorted(line.items())
        }
        for dimension, line in sorted(scores.items())
    }


def markdown(means: Means) -> str:
    """mAP as a table: a row for each number of classes, a column for each dimension."""
    numbers = sorted({number for line in means.values() for number in line})
    lines = [
        "| classes | " + " | ".join(f"{dimension}-d" for dimension in means) + " |",
        "|---:|" + "---:|" * len(means),
    ]
    for number in numbers:
        parts = []
        for line in means.values():
            if number not in line:
                parts.append("-")
                continue
            mean, spread, seeds = line[number]
            parts.append(f"{mean:.4f}" + (f" ± {spread:.4f}" if seeds > 1 else ""))
        lines.append(f"| {number} | " + " | ".join(parts) + " |")
    return "\n".join(lines) + "\n"


def _plot(means: Means, path: Path, title: str) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for dimension, line in means.items():
        axes.errorbar(
            list(line),
            [mean for mean, _, _ in line.values()],
            yerr=[spread for _, spread, _ in line.values()],
            marker="o",
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=f"{dimension} dimensions",
        )
    axes.set_xscale("log")
    numbers = sorted({number for line in means.values() for number in line})
    axes.set_xticks(numbers, [str(number) for number in numbers], fontsize=8)
    axes.minorticks_off()
    axes.set(xlabel="training classes", ylabel="mAP", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
