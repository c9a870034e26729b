"""Find the local task that follows the leaderboard: `main_cv_lb --submissions FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from visual_search.common.errors import run_command


def main() -> None:
    """Read past submissions, compare their board scores with every local one, write the study."""
    options = build_parser().parse_args()

    from visual_search.evaluation.leaderboard import read_submissions, study, write_study

    submissions = read_submissions(options.submissions, options.results, options.metric)
    found = study(submissions)
    print(write_study(options.output, submissions, found))
    print(f"\n{found.conclusion}")
    print(f"report: {options.output / 'study.html'}, plots: {options.output / 'plots'}")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_cv_lb",
        description="Correlate past submissions' leaderboard scores with their scores on local "
        "tasks, and find the task that predicts the board, by leave-one-out.",
    )
    parser.add_argument(
        "--submissions",
        type=Path,
        required=True,
        help="csv: submission,board and run (a model that main_evaluate scored on tasks); any "
        "further column is a local score by itself",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("runs/evaluation"),
        help="folder of the evaluations, <run>/results.json (%(default)s)",
    )
    parser.add_argument("--metric", default="", help="of the tasks; default: each task's own")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/cv_lb"), help="folder of the study (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
