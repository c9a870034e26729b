"""Check everything that makes submissions fail: `python -m my_submission.preflight`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.common.errors import UserError, run_command

if TYPE_CHECKING:
    from visual_search.submission.preflight import Finding

# Images of the trial run.
TRIAL_QUERIES, TRIAL_GALLERY = 8, 12
TRIAL_SECONDS = 180.0


def main() -> None:
    """Print a line for each check; exit status 1 with a count where something would fail."""
    arguments = _arguments()
    problems = 0
    for finding in findings(arguments):
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


def findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Every check, cheapest first."""
    from visual_search.submission import preflight
    from visual_search.submission.git_tree import SubmissionTree

    try:
        major, minor = map(int, arguments.python.split("."))
    except ValueError:
        raise UserError(f"--python {arguments.python} is no version such as 3.11") from None
    tree = SubmissionTree(arguments.project)
    yield from preflight.check_changes(tree)
    yield from preflight.check_large_files(tree)
    yield from preflight.check_weights(tree)
    yield from preflight.check_aicrowd_json(tree)
    yield from preflight.check_set_up(tree)
    yield from preflight.check_names_and_syntax(tree, (major, minor))
    yield from preflight.check_size(tree)
    yield from preflight.check_remote(tree)
    yield from preflight.check_tag(tree, arguments.tag)
    if not arguments.no_trial:
        yield from _trial(tree.root, arguments.clean_env, arguments.allow_fallback)


def _trial(root: Path, clean: bool, allow_fallback: bool) -> Iterator[Finding]:
    """Run the commit as the evaluator would, on drawn images."""
    from visual_search.common.locks import temporary_folder
    from visual_search.submission import preflight
    from visual_search.submission.dry_run import DrawnImages, staged
    from visual_search.submission.runtime_estimate import ImageCounts
    from visual_search.submission.sandbox import Limits, writes_elsewhere

    images = DrawnImages(ImageCounts(TRIAL_QUERIES, TRIAL_GALLERY))
    # Not in the repository: the client commits whatever lies there.
    kept = tempfile.NamedTemporaryFile(prefix="preflight_", suffix=".txt", delete=False)  # noqa: SIM115
    kept.close()
    log = Path(kept.name)
    try:
        with (
            temporary_folder("preflight_") as folder,
            staged(root, Limits(TRIAL_SECONDS), log) as stage,
        ):
            stage.allow_fallback = allow_fallback
            if clean:
                requirements = stage.checkout / "requirements.txt"
                stage.python = preflight.make_environment(
                    requirements, folder / "environment", sys.executable
                )
                stage.hidden = {}
            answer = stage.answer(images)
    except UserError as failure:
        yield preflight.problem(
            f"a trial run of the last commit failed: {failure} (what it printed: {log})"
        )
        return
    where = "in a clean environment" if clean else "with the packages of requirements.txt alone"
    log.unlink()
    if written := writes_elsewhere(answer.outcome.attempts):
        yield preflight.note(written)
    yield preflight.ok(
        f"a trial run of the last commit {where}: {images.counts.total} images in "
        f"{answer.outcome.seconds:.1f} s, no network, no write into the data folder"
    )


if __name__ == "__main__":
    run_command(main)
