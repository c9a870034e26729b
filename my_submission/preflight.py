"""Check everything that makes submissions fail: `python -m my_submission.preflight`."""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

from visual_search.common.errors import run_command


def main() -> None:
    """Print a line for each check; exit status 1 with a count where something would fail."""
    arguments = _arguments()

    from visual_search.submission.preflight import findings, trial

    project, problems = arguments.project, 0
    checks = findings(project, arguments.tag, arguments.python)
    run = trial(project, clean=arguments.clean_env, allow_fallback=arguments.allow_fallback)
    for finding in checks if arguments.no_trial else chain(checks, run):
        problems += finding.state == "problem"
        print(f"{finding.state:<8} {finding.text}", flush=True)
    if problems:
        print(f"{problems} problem{'s' if problems > 1 else ''}: the submission would fail")
        sys.exit(1)
    print(f'nothing stands against it; next: aicrowd submission create -t {arguments.tag} -d "…"')


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m my_submission.preflight",
        description="Check everything that makes submissions fail, one line each. The last commit "
        "is run on a few drawn images, with the packages of requirements.txt alone.",
    )
    parser.add_argument("--tag", default="v1", help="what you are going to submit (%(default)s)")
    parser.add_argument(
        "--clean-env",
        action="store_true",
        help="install requirements.txt into a new environment and run there (minutes, gigabytes)",
    )
    parser.add_argument(
        "--allow-fallback",
        action="store_true",
        help="pass where the ranker says that something runs the slow way",
    )
    parser.add_argument("--no-trial", action="store_true", help="do not run the last commit")
    parser.add_argument(
        "--python", default="3.11", help="Python of the evaluator, for the syntax (%(default)s)"
    )
    parser.add_argument(
        "--project", type=Path, default=Path.cwd(), help="the repository; default: this folder"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
