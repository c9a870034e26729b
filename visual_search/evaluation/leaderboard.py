"""Which local score follows the leaderboard: correlations, and predictions of what was left out.

A few dozen submissions and a dozen tasks: some task always correlates by chance. So a predictor
is judged by leave-one-out: fitted without a submission, it predicts that one's board score, and
the best task is chosen without it as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.common.files import read_json, write_figure, write_json, write_text
from visual_search.common.page import Section, markdown, write_page
from visual_search.data.tables import read_table
from visual_search.evaluation.run_tasks import name_of_run

NAME, BOARD, RUN = "submission", "board", "run"
MIN_SUBMISSIONS = 5

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From local scores `(n, tasks)`, board scores `(n,)` and others' local scores to the others' board
scores."""


@dataclass(frozen=True)
class Submissions:
    """What was submitted: board scores, and local scores as far as they are known."""

    names: list[str]
    board: np.ndarray
    """`(n,)`."""
    local: Mapping[str, np.ndarray]
    """Of each task, `(n,)`; NaN where it is not known."""


@dataclass(frozen=True)
class Correlation:
    """A coefficient, -1..1, and its 95 % interval; NaN and all of -1..1 where nothing is known."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} … {self.high:+.2f})"


NOTHING = Correlation(math.nan, -1, 1)


def pearson(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Pearson's r with Fisher's interval."""
    from scipy.stats import pearsonr

    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return NOTHING
    found = pearsonr(x, y)
    interval = found.confidence_interval(0.95)
    return Correlation(float(found.statistic), float(interval.low), float(interval.high))


def spearman(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's rho, ties at their mean rank, with Bonett and Wright's (2000) interval.

    Fisher's with a standard error of sqrt((1 + rho² / 2) / (n - 3)).
    """
    from scipy.stats import rankdata

    rho = pearson(rankdata(x), rankdata(y)).value
    if math.isnan(rho) or len(x) < 4:
        return Correlation(rho, -1, 1)
    if abs(rho) >= 1:
        return Correlation(rho, rho, rho)
    reach = NormalDist().inv_cdf(0.975) * math.sqrt((1 + rho * rho / 2) / (len(x) - 3))
    middle = math.atanh(rho)
    return Correlation(rho, math.tanh(middle - reach), math.tanh(middle + reach))


@dataclass(frozen=True)
class LocalScore:
    """How one task follows the board."""

    name: str
    submissions: int
    """Of which it is known."""
    spearman: Correlation
    pearson: Correlation


@dataclass(frozen=True)
class Predictor:
    """How well something predicts the board."""

    name: str
    error: float
    """Root of the mean square of what leave-one-out was wrong by, in units of the board."""
    rank_correlation: float
    """Spearman's, of the leave-one-out predictions and the board; NaN says nothing."""


@dataclass(frozen=True)
class Study:
    """What the submissions say about the local scores."""

    submissions: Submissions
    scores: tuple[LocalScore, ...]
    """The best rank correlation first."""
    tasks: tuple[Predictor, ...]
    """Each complete task by itself, the best first."""
    rules: tuple[Predictor, ...]
    """The board's own mean, and what can be done without knowing the best task."""

    @property
    def conclusion(self) -> str:
        """In one sentence."""
        nothing, *others = self.rules
        best = min(others, key=lambda rule: rule.error)
        if not best.error < nothing.error:
            return (
                "no local score predicts the board better than the mean of the board scores does: "
                "more submissions are needed, or a task that is more like the board's"
            )
        gain = 1 - best.error / nothing.error
        return (
            f"{best.name} predicts the board best: off by {best.error:.4f}, {gain:.0%} less than "
            f"without any local score; single tasks, of which the first is partly luck: "
            + ", ".join(f"{task.name} {task.error:.4f}" for task in self.tasks[:3])
        )

    def as_json(self) -> dict[str, Any]:
        """For files."""
        correlations = {one.name: asdict(one) for one in self.scores}
        for values in correlations.values():
            del values["name"]
        return {
            "conclusion": self.conclusion,
            "correlations": correlations,
            "tasks": [asdict(one) for one in self.tasks],
            "rules": [asdict(one) for one in self.rules],
        }


def study(submissions: Submissions) -> Study:
    """Compare every local score with the board.

    Raises:
        UserError: with fewer than :data:`MIN_SUBMISSIONS` submissions, without a board score that
            differs, or when no task is known of all submissions.
    """
    board, local = submissions.board, submissions.local
    if len(board) < MIN_SUBMISSIONS:
        raise UserError(
            f"{len(board)} submissions say nothing about a correlation; {MIN_SUBMISSIONS} are the "
            "least, 20 a good number"
        )
    if np.ptp(board) == 0:
        raise UserError("all submissions have the same board score: nothing can follow it")
    known = {name: ~np.isnan(scores) for name, scores in local.items()}
    scores = []
    for name, rows in known.items():
        pair = local[name][rows], board[rows]
        scores.append(LocalScore(name, int(rows.sum()), spearman(*pair), pearson(*pair)))
    complete = [name for name, rows in known.items() if rows.all()]
    if not complete:
        raise UserError(
            "no task is known of all submissions: evaluate the runs on the same tasks, or remove "
            "the submissions that lack them"
        )
    matrix = np.stack([local[name] for name in complete], axis=1)
    tasks = [_judged(name, by_line, matrix[:, [k]], board) for k, name in enumerate(complete)]
    rules = [
        replace(
            _judged("nothing: the board's own mean", by_mean, matrix, board),
            rank_correlation=math.nan,  # what is left out pulls its own prediction the other way
        ),
        _judged("the task that fits the others best", by_best_task, matrix, board),
        _judged("the plain mean of the tasks", by_line, matrix.mean(axis=1, keepdims=True), board),
    ]
    return Study(
        submissions,
        tuple(sorted(scores, key=lambda one: -np.nan_to_num(one.spearman.value, nan=-2))),
        tuple(sorted(tasks, key=lambda task: task.error)),
        tuple(rules),
    )


def _judged(name: str, predict: Predict, matrix: np.ndarray, board: np.ndarray) -> Predictor:
    predictions = left_out(predict, matrix, board)
    error = float(np.sqrt(np.mean((predictions - board) ** 2)))
    return Predictor(name, error, spearman(predictions, board).value)


def left_out(predict: Predict, matrix: np.ndarray, board: np.ndarray) -> np.ndarray:
    """Prediction of each submission by what is fitted to the others, `(n,)`."""
    rows = range(len(board))
    return np.concatenate(
        [predict(np.delete(matrix, k, 0), np.delete(board, k), matrix[[k]]) for k in rows]
    )


def by_mean(matrix: np.ndarray, board: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The mean of the board scores, whatever the local ones."""
    return np.full(len(asked), board.mean())


def by_line(matrix: np.ndarray, board: np.ndarray, asked: np.ndarray, task: int = 0) -> np.ndarray:
    """Least squares on one task; one without spread predicts the mean."""
    x = matrix[:, task]
    if np.ptp(x) == 0:
        return by_mean(matrix, board, asked)
    slope, constant = np.polyfit(x - x.mean(), board, 1)
    return np.asarray(constant + slope * (asked[:, task] - x.mean()))


def by_best_task(matrix: np.ndarray, board: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """A line on the task with the least leave-one-out error among these submissions."""
    lines = [partial(by_line, task=k) for k in range(matrix.shape[1])]
    best = min(lines, key=lambda line: ((left_out(line, matrix, board) - board) ** 2).sum())
    return best(matrix, board, asked)


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
        raise UserError(f"{file} line {table.index[row]}: board is empty")
    local = {
        str(column): _numbers(table, str(column), file)
        for column in table.columns
        if column not in (NAME, BOARD, RUN)
    }
    if RUN in table.columns:
        for row, run in enumerate(table[RUN]):
            if run:
                line = table.index[row]
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
        line, cell = table.index[wrong[0]], table[column].iloc[wrong[0]]
        raise UserError(f"{file} line {line}: {column} is {cell!r}, not a number")
    return numbers


def _scores(run: Path, results: Path, metric: str, place: str) -> dict[str, float]:
    path = results / name_of_run(run) / "results.json"
    try:
        tasks: dict[str, Any] = read_json(path)["tasks"]
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


def write_study(folder: Path, found: Study) -> str:
    """Write study.json, study.md, study.html and plots/<task>.png.

    Returns:
        The tables, in Markdown.
    """
    correlations = [
        ["local score", "submissions", "Spearman, 95 %", "Pearson, 95 %"],
        *(
            [one.name, str(one.submissions), str(one.spearman), str(one.pearson)]
            for one in found.scores
        ),
    ]
    predictors = [
        ["predicts the board by", "error (root mean square, left out)", "Spearman, left out"],
        *(
            [one.name, f"{one.error:.4f}", f"{one.rank_correlation:+.2f}".replace("+nan", "")]
            for one in (*found.rules, *found.tasks)
        ),
    ]
    text = f"{markdown(correlations)}\n\n{markdown(predictors)}"
    write_json(folder / "study.json", found.as_json())
    write_text(
        folder / "study.md", f"# Local scores and the board\n\n{text}\n\n{found.conclusion}\n"
    )
    sections = [
        Section(
            "",
            [found.conclusion],
            {"submissions": len(found.submissions.names)},
            tables={
                "": correlations,
                "Predictions of the submission that was left out": predictors,
            },
        ),
        *(
            Section(
                one.name,
                [f"Spearman {one.spearman}, Pearson {one.pearson}"],
                pictures={"each point a submission": _plot(folder, one, found.submissions)},
            )
            for one in found.scores
        ),
    ]
    write_page(folder / "study.html", "Local scores and the board", sections)
    return text


def _plot(folder: Path, score: LocalScore, submissions: Submissions) -> Path:
    from matplotlib.figure import Figure

    x, y = submissions.local[score.name], submissions.board
    known = ~np.isnan(x)
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x[known], y[known], s=28, zorder=3)
    for row in np.flatnonzero(known):
        place = x[row], y[row]
        words = submissions.names[row]
        axes.annotate(words, place, xytext=(4, 4), textcoords="offset points", fontsize=7)
    if known.sum() > 1 and np.ptp(x[known]) > 0:
        ends = np.array([[x[known].min()], [x[known].max()]])
        axes.plot(ends[:, 0], by_line(x[known][:, None], y[known], ends), alpha=0.5)
    axes.set(xlabel=score.name, ylabel="leaderboard")
    axes.grid(alpha=0.3)
    path = folder / "plots" / (re.sub(r"[^\w.-]", "_", score.name) + ".png")
    write_figure(path, figure)
    return path
