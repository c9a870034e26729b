"""What a rehearsal found, on the console, in result.json and on the report's page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.capacity import MEMORY_SHARE, TIME_SHARE, Prediction, Run, Workload
from visual_search.clock import given_up, listed
from visual_search.evaluate import Evaluation, Ranking
from visual_search.files import write_json
from visual_search.images import ImageProblem
from visual_search.largest_size import LargestSize
from visual_search.largest_size import as_json as largest_as_json
from visual_search.rehearsal import Answer
from visual_search.rehearsal_data import RealPhotos
from visual_search.report import write_report
from visual_search.sandbox import GB, Isolation, Limits
from visual_search.sandbox import as_json as limits_as_json

Tables = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Rehearsed:
    """Everything that a rehearsal measured and concluded."""

    photos: RealPhotos
    hidden_test: Workload
    limits: Limits
    isolation: Isolation
    answer: Answer
    """Of the submission as it is, on the whole development set."""
    scores: np.ndarray
    """`(n_queries,)`, the average precision of each query."""
    dry: Run | None
    """Over the rows of the hidden test; None where that failed."""
    prediction: Prediction
    largest: LargestSize
    largest_map: float | None
    notes: tuple[str, ...]
    failure: str | None
    """Why the hidden test would go past the limits."""

    @property
    def mean_average_precision(self) -> float:
        """The challenge's score on the development set, 0..1."""
        return float(self.scores.mean())

    @property
    def tables(self) -> Tables:
        """Titles, and names and values under each, as they are printed."""
        workload = self.answer.run.workload
        return {
            "Limits": {
                "time": f"{self.limits.seconds:g} s{self._stretched}",
                **self.isolation.described(self.limits),
            },
            f"Measured on {workload.described}": _measured_rows(self.answer),
            f"Expected on {self.hidden_test.described}": self._expected_rows(),
            "Largest input size that fits": self._size_rows(),
        }

    @property
    def _stretched(self) -> str:
        share = self.isolation.core_share
        if share == 1:
            return ""
        return f" there, {self.limits.seconds / share:g} s on the cores of this machine"

    def _expected_rows(self) -> dict[str, str]:
        share, expected = self.isolation.core_share, self.prediction
        scaling = "none: as many cores here as there"
        if share < 1:
            scaling = (
                f"embedding and ranking x {share:.2f}: {self.limits.cores} cores there, "
                f"{len(self.isolation.cores)} here"
            )
        return {
            "scaling": scaling,
            "ranking and memory from": (self.dry or self.answer.run).workload.described,
            "model loading": _seconds(expected.loading),
            "embedding": _seconds(expected.embedding),
            "ranking, or kept for it": _seconds(expected.ranking),
            "re-ranking, or kept for it": _seconds(expected.reranking),
            "in all": f"{expected.seconds:.0f} s of {self.limits.seconds:g} s",
            "memory": f"{expected.memory / GB:.2f} GB of {self.limits.memory / GB:g} GB",
        }

    def _size_rows(self) -> dict[str, str]:
        found, rows = self.largest, {}
        for trial in sorted(found.trials, key=lambda trial: trial.input_size):
            word = "fits" if trial.fits else "does not fit"
            rows[f"{trial.input_size} px"] = (
                f"{trial.images_per_second:.1f} images/s, {trial.prediction.seconds:.0f} s and "
                f"{trial.prediction.memory / GB:.2f} GB there: {word}"
            )
        if found.input_size is None:
            return {**rows, "largest": f"none: {found.reason}"}
        score = ""
        if self.largest_map is not None:
            score = f", mAP {self.largest_map:.4f} on the development set"
        reason = f" ({found.reason})" if found.reason else ""
        rows["largest"] = f"{found.input_size} px{score}{reason}"
        rows["kept in reserve"] = (
            f"{1 - TIME_SHARE:.0%} of the time, {1 - MEMORY_SHARE:.0%} of the memory"
        )
        return rows


def _measured_rows(answer: Answer) -> dict[str, str]:
    seconds, run = answer.run.seconds, answer.run
    rate = run.workload.images / max(seconds.embedding, 1e-9)
    rows = {
        "input size": f"{run.input_size} px" if run.input_size else "not said by the ranker",
        "model loading": _seconds(seconds.loading),
        "decode": _seconds(seconds.decode),
        "embedding, decode included": f"{_seconds(seconds.embedding)} ({rate:.1f} images/s)",
        "ranking": _seconds(seconds.ranking),
        "re-ranking": _seconds(seconds.reranking),
        "timed call": _seconds(seconds.total),
        "import, before the timed call": _seconds(answer.outcome.times["import"]),
        "peak memory": f"{run.peak_memory / GB:.2f} GB",
    }
    left_out = given_up(answer.log.get("clock") or {}, run.input_size)
    if left_out:
        rows["given up to be in time"] = listed(left_out)
    if answer.outcome.peak_gpu_memory is not None:
        rows["peak GPU memory"] = f"{answer.outcome.peak_gpu_memory / GB:.2f} GB"
    return rows


def _seconds(value: float | None) -> str:
    return "not said by the ranker" if value is None else f"{value:.2f} s"


def print_tables(rehearsed: Rehearsed) -> None:
    """Print the tables and the notes."""
    tables = rehearsed.tables
    width = max(len(name) for rows in tables.values() for name in rows)
    for title, rows in tables.items():
        print(f"\n{title}")
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")
    for note in rehearsed.notes:
        print(f"\nnote: {note}")
    print()


def write_result(rehearsed: Rehearsed, output: Path, report_queries: int) -> None:
    """Write result.json and report.html into `output`."""
    run, log, score = rehearsed.answer.run, rehearsed.answer.log, rehearsed.mean_average_precision
    problems = log.get("problems", [])
    result: dict[str, Any] = {
        "mAP": score,
        "seconds": round(run.seconds.total, 2),
        "images_per_second": round(run.workload.images / run.seconds.total, 1),
        "queries": run.workload.queries,
        "gallery": run.workload.gallery,
        "data_folder": str(rehearsed.photos.folder),
        "problems": problems,
        "rehearsal": _rehearsal_as_json(rehearsed),
    }
    write_json(output / "result.json", result)
    listed = tuple(ImageProblem(p["path"], p["reason"]) for p in problems)
    ranking = Ranking(rehearsed.answer.ranks, listed, run.seconds.embedding, run.seconds.ranking)
    notes = {f"note {number}": note for number, note in enumerate(rehearsed.notes, start=1)}
    write_report(
        output / "report.html",
        f"{rehearsed.photos.folder.resolve().name}, rehearsed: mAP {score:.4f}",
        {"mAP": f"{score:.4f}", **notes},
        rehearsed.photos.dev_set,
        Evaluation(ranking, rehearsed.scores),
        report_queries,
        sections=rehearsed.tables,
    )


def _rehearsal_as_json(rehearsed: Rehearsed) -> dict[str, Any]:
    answer = rehearsed.answer
    seconds = {
        name: None if value is None else round(value, 3)
        for name, value in vars(answer.run.seconds).items()
    }
    return {
        "passed": rehearsed.failure is None,
        "failure": rehearsed.failure,
        "limits": limits_as_json(rehearsed.isolation, rehearsed.limits),
        "input_size": answer.run.input_size,
        "seconds": seconds,
        "peak_memory": answer.run.peak_memory,
        "peak_gpu_memory": answer.outcome.peak_gpu_memory,
        "hidden_test": rehearsed.prediction.as_json(),
        "largest_size": {**largest_as_json(rehearsed.largest), "mAP": rehearsed.largest_map},
        "clock": answer.log.get("clock"),
        "notes": list(rehearsed.notes),
    }
