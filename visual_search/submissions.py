"""A table of past submissions: their leaderboard scores, and where their local scores are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from visual_search.board_study import Submissions
from visual_search.errors import UserError
from visual_search.tables import line_of_row, read_table

NAME, BOARD, RUN = "submission", "board", "run"


def read_submissions(file: Path, results: Path, metric: str = "") -> Submissions:
    """Read `submissions.csv`.

    Its columns are `submission`, `board`, and where the local scores come from: `run`, a model
    whose results.json lies in a folder of its name below `results`; and any further column, itself
    a local score, such as one's own cross-validation. An empty cell is not known.

    Args:
        file: the table.
        results: folder of evaluations, `<run>/results.json`.
        metric: of the tasks; empty takes each task's own.

    Raises:
        UserError: naming file, line and column of what is no number or missing; with the command
            that evaluates a run that was not.
    """
    table = read_table(file, [NAME, BOARD])
    board = _numbers(table, BOARD, file)
    if np.isnan(board).any():
        row = int(np.flatnonzero(np.isnan(board))[0])
        raise UserError(f"{file} line {line_of_row(file, row)}: board is empty")
    local = {
        str(column): _numbers(table, str(column), file)
        for column in table.columns
        if column not in (NAME, BOARD, RUN)
    }
    if RUN in table.columns:
        for row, run in enumerate(table[RUN]):
            if run:
                line = line_of_row(file, row)
                for task, score in _scores(
                    Path(run), results, metric, f"{file} line {line}"
                ).items():
                    local.setdefault(task, np.full(len(table), np.nan))[row] = score
    if not local:
        raise UserError(
            f"{file} has no local score: name the evaluated models in a column {RUN!r}, or give "
            "scores in columns of their own"
        )
    return Submissions(table[NAME].tolist(), board, local)


def _numbers(table: pd.DataFrame, column: str, file: Path) -> np.ndarray:
    text = table[column].str.strip()
    numbers = pd.to_numeric(text.where(text != ""), errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers) & (text != "").to_numpy())
    if len(wrong):
        line, cell = line_of_row(file, int(wrong[0])), table[column].iloc[wrong[0]]
        raise UserError(f"{file} line {line}: {column} is {cell!r}, not a number")
    return numbers


def _scores(run: Path, results: Path, metric: str, place: str) -> dict[str, float]:
    from visual_search.task_run import name_of_run

    path = results / name_of_run(run) / "results.json"
    try:
        tasks: dict[str, Any] = json.loads(path.read_text("utf-8"))["tasks"]
        return {
            name: float(one["mean_over_queries"][metric] if metric else one["score"])
            for name, one in tasks.items()
        }
    except OSError:
        raise UserError(
            f"{place}: {run} has no {path}; evaluate it: python -m visual_search.main_evaluate "
            f"tasks --run {run} --tasks config/evaluation/*.yml"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not what main_evaluate writes, or lacks the metric ({error!r})"
        ) from error
