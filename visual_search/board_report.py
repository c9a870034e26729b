"""A study of leaderboard and local scores as tables, plots and a page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from visual_search.board_study import Predictor, Study, fit_line
from visual_search.files import write_json, write_text, written_atomically
from visual_search.page import Section, write_page
from visual_search.report import markdown


def write_study(folder: Path, found: Study) -> str:
    """Write study.json, study.md, study.html and plots/<task>.png.

    Returns:
        The tables, in Markdown.
    """
    plots = {name: _plot(folder, name, found) for name in found.pearson}
    correlations, predictors = correlation_rows(found), predictor_rows(found)
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
                name,
                [f"Spearman {found.spearman[name]}, Pearson {found.pearson[name]}"],
                pictures={"each point a submission": path},
            )
            for name, path in plots.items()
        ),
    ]
    write_page(folder / "study.html", "Local scores and the board", sections)
    return text


def correlation_rows(found: Study) -> list[list[str]]:
    """A row for each local score, the best rank correlation first; heading on top."""
    order = sorted(
        found.spearman, key=lambda name: -np.nan_to_num(found.spearman[name].value, nan=-2)
    )
    return [
        ["local score", "submissions", "Spearman, 95 %", "Pearson, 95 %", "weight in the mix"],
        *(
            [
                name,
                str(found.counts[name]),
                str(found.spearman[name]),
                str(found.pearson[name]),
                f"{found.weights[name]:.3f}" if name in found.weights else "",
            ]
            for name in order
        ),
    ]


def predictor_rows(found: Study) -> list[list[str]]:
    """A row for each way to predict the board, heading first."""

    def row(one: Predictor) -> list[str]:
        rank = one.rank_correlation
        return [one.name, f"{one.error:.4f}", "" if np.isnan(rank) else f"{rank:+.2f}"]

    head = ["predicts the board by", "error (root mean square, left out)", "Spearman, left out"]
    return [head, *map(row, found.rules), *map(row, found.tasks)]


def _plot(folder: Path, name: str, found: Study) -> Path:
    from matplotlib.figure import Figure

    x, y = found.submissions.local[name], found.submissions.board
    known = ~np.isnan(x)
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x[known], y[known], s=28, zorder=3)
    for submission, here, there in zip(found.submissions.names, x, y, strict=True):
        if not np.isnan(here):
            axes.annotate(
                submission, (here, there), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    if known.sum() > 1 and np.ptp(x[known]) > 0:
        ends = np.array([[x[known].min()], [x[known].max()]])
        axes.plot(ends[:, 0], fit_line(x[known][:, None], y[known])(ends), alpha=0.5)
    axes.set(
        xlabel=name,
        ylabel="leaderboard",
        title=f"Spearman {found.spearman[name]}\nPearson {found.pearson[name]}",
    )
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    path = folder / "plots" / (re.sub(r"[^\w.-]", "_", name) + ".png")
    with written_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
