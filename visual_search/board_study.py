"""Which local score follows the leaderboard: correlations, and predictions of what was left out.

A few dozen submissions and a dozen tasks: some task always correlates by chance. So a predictor
is judged by leave-one-out: fitted without a submission, it predicts that one's board score, and
what it chooses (the best task, the strength of the ridge) it chooses without it as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from visual_search.errors import UserError

MIN_SUBMISSIONS = 5
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Strengths the mix may choose from, for scores at unit variance, a submission."""

Predict = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray], Predict]
"""Local scores `(n, tasks)` and board scores `(n,)` to a function from the former to the latter."""


@dataclass(frozen=True)
class Correlation:
    """A coefficient and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} … {self.high:+.2f})"


def pearson(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> Correlation:
    """Pearson's r with Fisher's interval (atanh, standard error 1 / sqrt(n - 3))."""
    return _fisher(_coefficient(x, y), len(x), 1.0, level)


def spearman(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> Correlation:
    """Spearman's rho, ties at their mean rank, with Bonett and Wright's (2000) interval.

    Fisher's with a standard error of sqrt((1 + rho² / 2) / (n - 3)).
    """
    rho = _coefficient(_ranks(x), _ranks(y))
    return _fisher(rho, len(x), 1 + rho * rho / 2, level)


def _coefficient(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    lengths = math.sqrt(float(x @ x) * float(y @ y))
    return float(np.clip(x @ y / lengths, -1, 1)) if lengths > 0 else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[codes]


def _fisher(value: float, count: int, factor: float, level: float) -> Correlation:
    if math.isnan(value) or count < 4:
        return Correlation(value, -1.0, 1.0)
    if abs(value) == 1:
        return Correlation(value, value, value)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(factor / (count - 3))
    middle = math.atanh(value)
    return Correlation(value, math.tanh(middle - reach), math.tanh(middle + reach))


@dataclass(frozen=True)
class Submissions:
    """What was submitted: board scores, and local scores as far as they are known."""

    names: list[str]
    board: np.ndarray
    """`(n,)`."""
    local: Mapping[str, np.ndarray]
    """Of each task, `(n,)`; NaN where it is not known."""


@dataclass(frozen=True)
class Predictor:
    """How well something predicts the board."""

    name: str
    error: float
    """Root of the mean square of what leave-one-out was wrong by, in units of the board."""
    rank_correlation: float
    """Spearman's, of the leave-one-out predictions and the board."""


@dataclass(frozen=True)
class Study:
    """What the submissions say about the local scores."""

    submissions: Submissions
    pearson: Mapping[str, Correlation]
    spearman: Mapping[str, Correlation]
    counts: Mapping[str, int]
    """Submissions of which a task's score is known."""
    tasks: tuple[Predictor, ...]
    """Each complete task by itself, the best first."""
    rules: tuple[Predictor, ...]
    """The board's own mean, and what can be done without knowing the best task."""
    weights: Mapping[str, float]
    """Of the mix, fitted to all submissions: board score a unit of local score."""

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
        return {
            "conclusion": self.conclusion,
            "correlations": {
                name: {
                    "submissions": self.counts[name],
                    "spearman": vars(self.spearman[name]),
                    "pearson": vars(self.pearson[name]),
                }
                for name in self.pearson
            },
            "tasks": [vars(one) for one in self.tasks],
            "rules": [vars(one) for one in self.rules],
            "weights_of_the_mix": dict(self.weights),
        }


def study(submissions: Submissions) -> Study:
    """Compare every local score with the board.

    Raises:
        UserError: with fewer than :data:`MIN_SUBMISSIONS` submissions, without a board score that
            differs, or when no task is known of all submissions.
    """
    board = submissions.board
    if len(board) < MIN_SUBMISSIONS:
        raise UserError(
            f"{len(board)} submissions say nothing about a correlation; {MIN_SUBMISSIONS} are the "
            "least, 20 a good number"
        )
    if np.ptp(board) == 0:
        raise UserError("all submissions have the same board score: nothing can follow it")
    found: dict[str, tuple[Correlation, Correlation, int]] = {}
    for name, scores in submissions.local.items():
        known = ~np.isnan(scores)
        found[name] = (
            pearson(scores[known], board[known])
            if known.sum() > 1
            else Correlation(math.nan, -1, 1),
            spearman(scores[known], board[known])
            if known.sum() > 1
            else Correlation(math.nan, -1, 1),
            int(known.sum()),
        )
    complete = [name for name, scores in submissions.local.items() if not np.isnan(scores).any()]
    if not complete:
        raise UserError(
            "no task is known of all submissions: evaluate the runs on the same tasks, or remove "
            "the submissions that lack them"
        )
    matrix = np.stack([submissions.local[name] for name in complete], axis=1)
    tasks = [_judged(name, fit_line, matrix[:, [k]], board) for k, name in enumerate(complete)]
    rules = [
        replace(
            _judged("nothing: the board's own mean", fit_nothing, matrix, board),
            rank_correlation=math.nan,  # what is left out pulls its own prediction the other way
        ),
        _judged("the task that fits the others best", fit_best_task, matrix, board),
        _judged("the plain mean of the tasks", fit_plain_mean, matrix, board),
        _judged("the weighted mix", fit_mix, matrix, board),
    ]
    return Study(
        submissions,
        {name: one for name, (one, _, _) in found.items()},
        {name: one for name, (_, one, _) in found.items()},
        {name: count for name, (_, _, count) in found.items()},
        tuple(sorted(tasks, key=lambda task: task.error)),
        tuple(rules),
        dict(zip(complete, mix_weights(matrix, board)[0].tolist(), strict=True)),
    )


def _judged(name: str, fit: Fit, matrix: np.ndarray, board: np.ndarray) -> Predictor:
    predictions = left_out(fit, matrix, board)
    error = float(np.sqrt(np.mean((predictions - board) ** 2)))
    return Predictor(name, error, spearman(predictions, board).value)


def left_out(fit: Fit, matrix: np.ndarray, board: np.ndarray) -> np.ndarray:
    """Prediction of each submission by what is fitted to the others, `(n,)`."""
    found = []
    for row in range(len(board)):
        others = np.arange(len(board)) != row
        found.append(fit(matrix[others], board[others])(matrix[[row]])[0])
    return np.array(found)


def fit_nothing(matrix: np.ndarray, board: np.ndarray) -> Predict:
    """The mean of the board scores, whatever the local ones."""
    return lambda asked: np.full(len(asked), board.mean())


def fit_line(matrix: np.ndarray, board: np.ndarray) -> Predict:
    """Least squares on one column; a column without spread predicts the mean."""
    x = matrix[:, 0] - matrix[:, 0].mean()
    squares = float(x @ x)
    slope = float(x @ (board - board.mean())) / squares if squares > 0 else 0.0
    return lambda asked: board.mean() + slope * (asked[:, 0] - matrix[:, 0].mean())


def fit_best_task(matrix: np.ndarray, board: np.ndarray) -> Predict:
    """A line on the task with the least leave-one-out error among these submissions."""
    errors = [
        float(np.sum((left_out(fit_line, matrix[:, [k]], board) - board) ** 2))
        for k in range(matrix.shape[1])
    ]
    best = int(np.argmin(errors))
    predict = fit_line(matrix[:, [best]], board)
    return lambda asked: predict(asked[:, [best]])


def fit_plain_mean(matrix: np.ndarray, board: np.ndarray) -> Predict:
    """A line on the mean of all tasks."""
    predict = fit_line(matrix.mean(axis=1, keepdims=True), board)
    return lambda asked: predict(asked.mean(axis=1, keepdims=True))


def fit_mix(matrix: np.ndarray, board: np.ndarray) -> Predict:
    """The weighted mix of :func:`mix_weights`."""
    weights, constant = mix_weights(matrix, board)
    return lambda asked: constant + asked @ weights


def mix_weights(matrix: np.ndarray, board: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of the tasks, none below zero, and the constant, by ridge regression.

    The strength is the one of :data:`RIDGES` with the least leave-one-out error.

    Returns:
        `(tasks,)`, in units of the board a unit of the local score, and the constant.
    """
    errors = [
        float(
            np.sum(
                (left_out(lambda x, y, ridge=ridge: _mix(x, y, ridge), matrix, board) - board)  # type: ignore[misc]
                ** 2
            )
        )
        for ridge in RIDGES
    ]
    weights = _ridge_weights(matrix, board, RIDGES[int(np.argmin(errors))])
    return weights, float(board.mean() - matrix.mean(axis=0) @ weights)


def _mix(matrix: np.ndarray, board: np.ndarray, ridge: float) -> Predict:
    weights = _ridge_weights(matrix, board, ridge)
    return lambda asked: board.mean() + (asked - matrix.mean(axis=0)) @ weights


def _ridge_weights(matrix: np.ndarray, board: np.ndarray, ridge: float) -> np.ndarray:
    from scipy.optimize import nnls

    spread = matrix.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    x, y = (matrix - matrix.mean(axis=0)) / scale, board - board.mean()
    # Ridge as further rows: sqrt(strength) * w should be 0.
    penalty = math.sqrt(ridge * len(board)) * np.eye(matrix.shape[1])
    weights, _ = nnls(np.vstack([x, penalty]), np.append(y, np.zeros(matrix.shape[1])))
    return weights / scale
