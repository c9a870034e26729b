"""Which local score follows the leaderboard: correlations, and predictions of what was left out.

A few dozen submissions and a dozen tasks: some task always correlates by chance. So a predictor
is judged by leave-one-out: fitted without a submission, it predicts that one's board score, and
the best task is chosen without it as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.common.files import read_json, write_figure, write_json, write_text
from visual_search.common.page import Section, markdown, write_page
from visual_search.data.schema import is_blank
from visual_search.data.tables import read_table
from visual_search.evaluation.run_tasks import name_of_run

NAME, BOARD, RUN = "submission", "board", "run"
MIN_SUBMISSIONS = 5

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From local scores `(n, tasks)`, board scores `(n,)` and others' local scores to the others' board
scores."""


@dataclass(frozen=True)
class Correlation:
    """A coefficient, -1..1, and its 95 % interval; NaN and all of -1..1 where nothing is known."""

    value: float
    low: float = -1
    high: float = 1

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} … {self.high:+.2f})"


def pearson(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Pearson's r with Fisher's interval."""
    from scipy.stats import pearsonr

    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(math.nan)
    found = pearsonr(x, y)
    return Correlation(float(found.statistic), *map(float, found.confidence_interval(0.95)))


def spearman(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's rho, ties at their mean rank, with Bonett and Wright's (2000) interval.

    Fisher's with a standard error of sqrt((1 + rho² / 2) / (n - 3)).
    """
    from scipy.stats import rankdata

    rho = pearson(rankdata(x), rankdata(y)).value
    if math.isnan(rho) or len(x) < 4:
        return Correlation(rho)
    if abs(rho) >= 1:
        return Correlation(rho, rho, rho)
    reach = NormalDist().inv_cdf(0.975) * math.sqrt((1 + rho * rho / 2) / (len(x) - 3))
    middle = math.atanh(rho)
    return Correlation(rho, math.tanh(middle - reach), math.tanh(middle + reach))


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

    conclusion: str
    correlations: dict[str, dict[str, Any]]
    """Of each local score `submissions`, of which it is known, `spearman` and `pearson`; the best
    rank correlation first."""
    tasks: list[Predictor]
    """Each complete task by itself, the best first."""
    rules: list[Predictor]
    """The board's own mean, and what can be done without knowing the best task."""


def study(submissions: pd.DataFrame) -> Study:
    """Compare every local score with the board.

    Args:
        submissions: as :func:`read_submissions` gives them.

    Raises:
        UserError: with fewer than :data:`MIN_SUBMISSIONS` submissions, without a board score that
            differs, or when no task is known of all submissions.
    """
    board, local = submissions[BOARD].to_numpy(), submissions.drop(columns=BOARD)
    if len(board) < MIN_SUBMISSIONS:
        raise UserError(
            f"{len(board)} submissions say nothing about a correlation; {MIN_SUBMISSIONS} are the "
            "least, 20 a good number"
        )
    if np.ptp(board) == 0:
        raise UserError("all submissions have the same board score: nothing can follow it")
    complete = local.dropna(axis="columns")
    if complete.empty:
        raise UserError(
            "no task is known of all submissions: evaluate the runs on the same tasks, or remove "
            "the submissions that lack them"
        )
    found: dict[str, dict[str, Any]] = {}
    for name, scores in local.items():
        pair = scores.dropna().to_numpy(), board[scores.notna().to_numpy()]
        both = {"spearman": spearman(*pair), "pearson": pearson(*pair)}
        found[str(name)] = {"submissions": len(pair[0]), **both}
    best_first = sorted(
        found, key=lambda name: -np.nan_to_num(found[name]["spearman"].value, nan=-2)
    )

    def judged(name: str, predict: Predict, matrix: np.ndarray) -> Predictor:
        predictions = left_out(predict, matrix, board)
        error = float(np.sqrt(np.mean((predictions - board) ** 2)))
        return Predictor(name, error, spearman(predictions, board).value)

    tasks = [judged(str(name), by_mean_task, complete[[name]].to_numpy()) for name in complete]
    tasks.sort(key=lambda task: task.error)
    matrix = complete.to_numpy()
    # What is left out pulls the mean of the others the other way: no rank correlation.
    nothing = judged("nothing: the board's own mean", by_nothing, matrix)
    rules = [
        replace(nothing, rank_correlation=math.nan),
        judged("the task that fits the others best", by_best_task, matrix),
        judged("the plain mean of the tasks", by_mean_task, matrix),
    ]
    best = min(rules[1:], key=lambda rule: rule.error)
    if best.error < nothing.error:
        conclusion = (
            f"{best.name} predicts the board best: off by {best.error:.4f}, "
            f"{1 - best.error / nothing.error:.0%} less than without any local score; single "
            "tasks, of which the first is partly luck: "
            + ", ".join(f"{task.name} {task.error:.4f}" for task in tasks[:3])
        )
    else:
        conclusion = (
            "no local score predicts the board better than the mean of the board scores does: "
            "more submissions are needed, or a task that is more like the board's"
        )
    return Study(conclusion, {name: found[name] for name in best_first}, tasks, rules)


def left_out(predict: Predict, matrix: np.ndarray, board: np.ndarray) -> np.ndarray:
    """Prediction of each submission by what is fitted to the others, `(n,)`."""
    rows = range(len(board))
    return np.concatenate(
        [predict(np.delete(matrix, k, 0), np.delete(board, k), matrix[[k]]) for k in rows]
    )


def by_nothing(matrix: np.ndarray, board: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The mean of the board scores, whatever the local ones."""
    return np.full(len(asked), board.mean())


def by_mean_task(matrix: np.ndarray, board: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Least squares on the mean of the tasks; one without spread predicts the board's mean."""
    x = matrix.mean(axis=1)
    if np.ptp(x) == 0:
        return by_nothing(matrix, board, asked)
    slope, constant = np.polyfit(x - x.mean(), board, 1)
    return np.asarray(constant + slope * (asked.mean(axis=1) - x.mean()))


def by_best_task(matrix: np.ndarray, board: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """A line on the task with the least leave-one-out error among these submissions."""
    alone = [left_out(by_mean_task, column[:, None], board) for column in matrix.T]
    best = [int(np.argmin(((np.array(alone) - board) ** 2).sum(axis=1)))]
    return by_mean_task(matrix[:, best], board, asked[:, best])


def read_submissions(file: Path, results: Path, metric: str = "") -> pd.DataFrame:
    """Read `submissions.csv`.

    Its columns are `submission`, `board`, and where the local scores come from: `run`, a model
    whose results.json lies in a folder of its name below `results`; and any further column, itself
    a local score, such as one's own cross-validation. An empty cell is not known.

    Args:
        file: the table.
        results: folder of evaluations, `<run>/results.json`.
        metric: of the tasks; empty takes each task's own.

    Returns:
        A row for each submission, by its name: `board` and every local score, float64, NaN where
        it is not known.

    Raises:
        UserError: naming file, line and column of what is no number or missing, and a column that
            is called as a task; with the command that evaluates a run that was not.
    """
    table = read_table(file, [NAME, BOARD])
    runs = table.pop(RUN) if RUN in table.columns else pd.Series("", table.index)
    names = table.pop(NAME).tolist()
    for column, cells in table.items():
        table[column], blank = pd.to_numeric(cells, errors="coerce"), is_blank(cells)
        wrong = ~np.isfinite(table[column]) & (~blank | (column == BOARD))
        for line in table.index[wrong][:1]:
            what = "empty" if blank[line] else f"{cells[line]!r}, not a number"
            raise UserError(f"{file} line {line}: {column} is {what}")
    own = set(table.columns)
    for line, run in runs[runs != ""].items():
        path = results / name_of_run(Path(run)) / "results.json"
        try:
            for task, one in read_json(path)["tasks"].items():
                if task in own:
                    raise UserError(f"{file} has a column {task!r}, as a task of {path}: rename it")
                score = one["mean_over_queries"][metric] if metric else one["score"]
                table.loc[line, task] = float(score)
        except OSError:
            raise UserError(
                f"{file} line {line}: {run} has no {path}; evaluate it: python -m "
                f"visual_search.main_evaluate tasks --run {run} --tasks config/evaluation/*.yml"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not what main_evaluate writes, or lacks the metric ({error!r})"
            ) from error
    if table.columns.tolist() == [BOARD]:
        raise UserError(
            f"{file} has no local score: name the evaluated models in a column {RUN!r}, or give "
            "scores in columns of their own"
        )
    return table.set_axis(names)


def write_study(folder: Path, submissions: pd.DataFrame, found: Study) -> str:
    """Write study.json, study.md, study.html and plots/<task>.png.

    Returns:
        The tables, in Markdown.
    """
    correlations = [["local score", "submissions", "Spearman, 95 %", "Pearson, 95 %"]]
    correlations += [[name, *map(str, one.values())] for name, one in found.correlations.items()]
    heading = "Predictions of the submission that was left out"
    predictors = [["predicts the board by", "error (root mean square)", "Spearman"]]
    for one in (*found.rules, *found.tasks):
        correlation = f"{one.rank_correlation:+.2f}".replace("+nan", "")
        predictors.append([one.name, f"{one.error:.4f}", correlation])
    title = "Local scores and the board"
    text = f"{markdown(correlations)}\n\n{heading}:\n\n{markdown(predictors)}"
    write_json(folder / "study.json", asdict(found))
    write_text(folder / "study.md", f"# {title}\n\n{text}\n\n{found.conclusion}\n")
    facts, tables = {"submissions": len(submissions)}, {"": correlations, heading: predictors}
    sections = [Section("", [found.conclusion], facts, tables=tables)]
    for name, pair in found.correlations.items():
        words = f"Spearman {pair['spearman']}, Pearson {pair['pearson']}"
        plot = {"each point a submission": _plot(folder, submissions, name)}
        sections.append(Section(name, [words], pictures=plot))
    write_page(folder / "study.html", title, sections)
    return text


def _plot(folder: Path, submissions: pd.DataFrame, name: str) -> Path:
    from matplotlib.figure import Figure

    known = submissions[[name, BOARD]].dropna()
    x, y = known.to_numpy().T
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x, y, s=28, zorder=3)
    for words, *place in zip(known.index, x, y, strict=True):
        axes.annotate(words, tuple(place), xytext=(4, 4), textcoords="offset points", fontsize=7)
    if len(x) > 1 and np.ptp(x) > 0:
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, by_mean_task(x[:, None], y, ends[:, None]), alpha=0.5)
    axes.set(xlabel=name, ylabel="leaderboard")
    axes.grid(alpha=0.3)
    path = folder / "plots" / (re.sub(r"[^\w.-]", "_", name) + ".png")
    write_figure(path, figure)
    return path
