import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.commands import refused, told
from tests.conftest import write_csv
from visual_search.evaluation.leaderboard import (
    by_best_task,
    by_mean_task,
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


def submissions(count: int = 16) -> pd.DataFrame:
    """The board is a mix of the first two tasks; the others are noise."""
    rng = np.random.default_rng(0)
    local = rng.normal(0.5, 0.1, (4, count))
    board = 0.2 + 0.6 * local[0] + 0.4 * local[1] + rng.normal(0, 0.01, count)
    return pd.DataFrame({"board": board, **{f"task{k}": row for k, row in enumerate(local)}})


def test_the_task_that_the_board_is_made_of_is_found() -> None:
    found = study(submissions())
    errors = {rule.name: rule.error for rule in found.rules}
    assert errors["the task that fits the others best"] == min(errors.values())
    assert found.conclusion.startswith("the task that fits the others best predicts the board")
    assert [one.name for one in found.tasks[:2]] == ["task0", "task1"]


def test_leaving_out_leaves_out() -> None:
    table = submissions(9).to_numpy()
    board, matrix = table[:, 0], table[:, 1:]
    moved = board + 100 * (np.arange(9) == 3)  # what is predicted for it must not know of it
    before, after = (left_out(by_best_task, matrix, one) for one in (board, moved))
    assert after[3] == pytest.approx(before[3])
    assert abs(after[0] - before[0]) > 1e-3
    fitted = np.polyval(np.polyfit(matrix[:, 0], board, 1), matrix[:, 0])
    predicted = by_mean_task(matrix[:, [0]], board, matrix[:, [0]])
    np.testing.assert_allclose(predicted, fitted)


def test_faults_are_told(tmp_path: Path) -> None:
    refused("4 submissions say nothing", study, submissions(4))
    good = submissions(6)
    refused("the same board score", study, good.assign(board=1.0))
    refused("no task is known of all", study, good.mask(np.eye(6, 5, 1, dtype=bool)))

    def read(column: str, *cells: object) -> str:
        table = write_csv(tmp_path / "s.csv", ["submission", "board", column], [["a", *cells]])
        return refused(".", read_submissions, table, tmp_path)

    assert "s.csv line 2: cv is 'x', not a number" in read("cv", 0.5, "x")
    assert "s.csv line 2: board is empty" in read("cv", "", 1)
    assert "evaluate it: python -m visual_search" in read("run", 1, "runs/a")
    assert "has no local score" in read("run", 1, "")


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
    write_csv(table, ["submission", "board", "run", "shop"], rows)
    refused("column 'shop', as a task of .*: rename it", read_submissions, table, file.parents[1])
