import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.commands import refused, told
from tests.conftest import write_csv
from visual_search.evaluation.leaderboard import (
    Submissions,
    by_best_task,
    by_line,
    left_out,
    pearson,
    read_submissions,
    spearman,
    study,
)
from visual_search.main_cv_lb import main


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(5, 40), steps=st.integers(3, 50))
def test_rank_correlation_with_ties_is_scipys(seed: int, count: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, steps, count) / steps, rng.normal(size=count)
    if np.ptp(x) == 0:
        assert np.isnan(pearson(x, y).value)
    else:
        assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)


def test_spearmans_interval_covers_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    r = 0.7
    rho = 6 / np.pi * np.arcsin(r / 2)  # of a bivariate normal distribution
    covered = 0
    for _ in range(300):
        x, noise = rng.normal(size=(2, 20))
        interval = spearman(x, r * x + np.sqrt(1 - r * r) * noise)
        covered += interval.low <= rho <= interval.high
    assert 0.915 <= covered / 300 <= 0.985  # within three standard deviations


def submissions(count: int = 16, tasks: int = 4, seed: int = 0) -> Submissions:
    """The board is a mix of the first two tasks; the others are noise."""
    rng = np.random.default_rng(seed)
    local = rng.normal(0.5, 0.1, (tasks, count))
    board = 0.2 + 0.6 * local[0] + 0.4 * local[1] + rng.normal(0, 0.01, count)
    names = [f"v{n}" for n in range(count)]
    return Submissions(names, board, {f"task{k}": row for k, row in enumerate(local)})


def test_the_task_that_the_board_is_made_of_is_found() -> None:
    found = study(submissions())
    errors = {rule.name: rule.error for rule in found.rules}
    assert errors["the task that fits the others best"] == min(errors.values())
    assert found.conclusion.startswith("the task that fits the others best predicts the board")
    assert [one.name for one in found.tasks[:2]] == ["task0", "task1"]


def test_leaving_out_leaves_out() -> None:
    given_ = submissions(9)
    matrix = np.stack(list(given_.local.values()), axis=1)
    moved = given_.board.copy()
    moved[3] += 100  # what is predicted for it must not know of it
    before, after = (left_out(by_best_task, matrix, board) for board in (given_.board, moved))
    assert after[3] == pytest.approx(before[3])
    assert abs(after[0] - before[0]) > 1e-3
    slope, constant = np.polyfit(matrix[:, 0], given_.board, 1)
    predicted = by_line(matrix[:, [0]], given_.board, matrix[:, [0]])
    np.testing.assert_allclose(predicted, slope * matrix[:, 0] + constant)


def test_faults_are_told(tmp_path: Path) -> None:
    few = submissions(4)
    refused("4 submissions say nothing", study, few)
    good = submissions(6)
    refused("the same board score", study, Submissions(good.names, np.ones(6), good.local))
    holes = {name: np.where(np.arange(6) == 0, np.nan, row) for name, row in good.local.items()}
    refused("no task is known of all", study, Submissions(good.names, good.board, holes))
    table = write_csv(tmp_path / "s.csv", ["submission", "board", "cv"], [["a", 0.5, "x"]])
    refused(r"s\.csv line 2: cv is 'x', not a number", read_submissions, table, tmp_path)
    table = write_csv(tmp_path / "s.csv", ["submission", "board", "cv"], [["a", "", 1]])
    refused(r"line 2: board is empty", read_submissions, table, tmp_path)
    table = write_csv(tmp_path / "s.csv", ["submission", "board", "run"], [["a", 1, "runs/a"]])
    refused("evaluate it: python -m visual_search", read_submissions, table, tmp_path)
    table = write_csv(tmp_path / "s.csv", ["submission", "board"], [["a", 1]])
    refused("no local score", read_submissions, table, tmp_path)


def test_the_command_reads_evaluations_and_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        score = float(rng.random())
        tasks = {"shop": {"score": score, "mean_over_queries": {"R@1": 1 - score}}}
        file = tmp_path / "evaluation" / f"m{number}" / "results.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"tasks": tasks}))
        cv = "" if number == 3 else round(score / 2, 3)
        rows.append([f"try {number}", round(0.1 + score, 6), f"runs/m{number}", cv])
    table = write_csv(tmp_path / "submissions.csv", ["submission", "board", "run", "cv"], rows)
    out = tmp_path / "out"
    arguments = ("--submissions", table, "--results", tmp_path / "evaluation", "--output", out)
    said = told(main, *arguments)
    assert "| shop | 8 | +1.00" in said
    assert "| cv | 7 | +1.00" in said
    values = json.loads((out / "study.json").read_text())
    assert values["correlations"]["shop"]["pearson"]["value"] == pytest.approx(1)
    for name in ("study.html", "study.md", "plots/shop.png", "plots/cv.png"):
        assert (out / name).stat().st_size > 100
    assert "| shop | 8 | -1.00" in told(main, *arguments, "--metric", "R@1")
