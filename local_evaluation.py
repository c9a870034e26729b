"""Run the submission as the evaluator does and score it: `python local_evaluation.py`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import UserError, run_command
from visual_search.common.files import read_json
from visual_search.common.ranges import real_number, whole_number

if TYPE_CHECKING:
    import numpy as np

    from visual_search.data.dev_sets import DevSet
    from visual_search.submission.rehearse import Rehearsal

DEMO_FOLDER = Path("dataset/demo/development_test_data")
PUBLIC_FOLDER = Path("public_dataset")
TIMED = ("embedding", "ranking", "reranking")
"""Of the ranker's log; the search behind re-ranking counts as re-ranking."""


def main() -> None:
    """Rank, check, score, and write result.json and report.html."""
    arguments = _arguments()

    from visual_search.common.files import write_json
    from visual_search.data.dev_sets import read_dev_set
    from visual_search.evaluation.dev_set import evaluate_answer, unmatched_sentence
    from visual_search.evaluation.report import write_report
    from visual_search.ranking.deadline import degradations, listed

    folder, output = data_folder(arguments.data_folder), arguments.output
    dev_set = read_dev_set(folder)
    queries, gallery = len(dev_set.queries), len(dev_set.gallery)
    check_output(output)
    rehearsal = rehearse(arguments, folder, dev_set) if arguments.rehearse else None
    if rehearsal:
        evaluation, log = rehearsal.evaluation, rehearsal.answer.log
        seconds = rehearsal.answer.outcome.times["rank"]
    else:
        if arguments.weights:
            os.environ["VISUAL_SEARCH_WEIGHTS"] = str(arguments.weights)
        ranks, seconds, log = run_submission(folder, output / "ranker_log.json")
        evaluation = evaluate_answer(dev_set, ranks, log)
    score, speed = evaluation.mean_average_precision, (queries + gallery) / seconds
    result: dict[str, Any] = {
        "mAP": score,
        "seconds": round(seconds, 2),
        "images_per_second": round(speed, 1),
        "queries": queries,
        "queries_without_match": dev_set.unmatched,
        "gallery": gallery,
        "data_folder": str(folder),
        **{f"{name}_seconds": log.get("seconds", {}).get(name) for name in TIMED},
        "problems": log.get("problems", []),
        "clock": log.get("clock"),
        **({"rehearsal": rehearsal.facts} if rehearsal else {}),
    }
    write_json(output / "result.json", result)
    given_up = listed(degradations(log.get("clock") or {}, log.get("input_size")))
    facts = {
        "mAP": f"{score:.4f}",
        "images": dev_set.describe(),
        "seconds": f"{seconds:.1f} ({speed:.1f} images/s, model loading included)",
        **({"given up to be in time": given_up} if given_up else {}),
    }
    write_report(
        output / "report.html",
        f"{folder.resolve().name}: mAP {score:.4f}",
        facts,
        dev_set,
        evaluation,
        arguments.report_queries,
        rehearsal and rehearsal.tables,
    )
    if dev_set.unmatched:
        print(unmatched_sentence(dev_set))
    if rehearsal and given_up:  # what a child prints is in its log
        print(f"given up to be in time: {given_up}")
    print({"mAP": score})
    print(f"{seconds:.1f} s in all, {speed:.1f} images/s; limit of the evaluator: 600 s")
    print(f"report: {output / 'report.html'}")
    if rehearsal and rehearsal.facts["failure"]:
        raise UserError(rehearsal.facts["failure"])
    if rehearsal:
        print("the rehearsal passed; next: python -m my_submission.preflight")


def check_output(folder: Path) -> None:
    """Refuse, before the work, a folder into which the result could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--output {folder} cannot be written ({error.strerror}): name another folder"
        ) from error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run the submission as the evaluator does, check its array and score it."
    )
    parser.add_argument(
        "--data-folder",
        type=Path,
        help="holds gallery.csv, queries.csv and their images; default: $AICROWD_DATASET_DIR, "
        "else public_dataset, else the demo",
    )
    parser.add_argument(
        "--weights", type=Path, help="folder of an export; default: my_submission/weights"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/local_evaluation"), help="folder of the result"
    )
    parser.add_argument(
        "--report-queries",
        type=whole_number(0),
        default=100,
        help="worst queries on the page, 0 for all",
    )
    rehearsal = parser.add_argument_group(
        "rehearsal", "run the last commit in a child process under the evaluator's limits"
    )
    for name, words in (
        ("--rehearse", "do so"),
        ("--working-tree", "take the files on disk that git does not ignore, not the last commit"),
        ("--allow-fallback", "pass where the ranker says that something runs the slow way"),
        ("--no-largest-size", "do not look for the largest input size"),
    ):
        rehearsal.add_argument(name, action="store_true", help=words)
    for name, kind, default, words in (
        ("--time-limit", real_number(0, above=True), 600.0, "seconds"),
        ("--cores", whole_number(1), 4, "CPU cores"),
        ("--memory-limit", real_number(0, above=True), 16.0, "GB of memory"),
        ("--sample", whole_number(2), 200, "images of the runs that look for the largest size"),
        ("--test-queries", whole_number(1), 14_000, "of the hidden test"),
        ("--test-gallery", whole_number(1), 26_000, "of the hidden test"),
    ):
        rehearsal.add_argument(name, type=kind, default=default, help=f"{words} (%(default)g)")
    return parser.parse_args()


def rehearse(arguments: argparse.Namespace, folder: Path, dev_set: DevSet) -> Rehearsal:
    """Rehearse the submission in whose repository we are.

    Raises:
        UserError: one sentence, when it would fail. It is in result.json as well.
    """
    from visual_search.common.files import write_json
    from visual_search.submission import rehearse
    from visual_search.submission.dry_run import staged
    from visual_search.submission.runtime_estimate import ImageCounts
    from visual_search.submission.sandbox import GB, Limits

    print(f"rehearsing {'the working tree' if arguments.working_tree else 'the last commit'}")
    try:
        with staged(
            Path.cwd(),
            Limits(arguments.time_limit, arguments.cores, int(arguments.memory_limit * GB)),
            arguments.output / "rehearsal_log.txt",
            working_tree=arguments.working_tree,
            weights=arguments.weights,
            allow_fallback=arguments.allow_fallback,
        ) as stage:
            hidden_test = ImageCounts(arguments.test_queries, arguments.test_gallery)
            asked = (hidden_test, arguments.sample, not arguments.no_largest_size)
            found = rehearse.rehearse(stage, folder, dev_set, *asked)
    except UserError as refused:
        result = {"rehearsal": {"passed": False, "failure": str(refused)}}
        write_json(arguments.output / "result.json", result)
        raise
    width = max(len(name) for rows in found.tables.values() for name in rows)
    for title, rows in found.tables.items():
        print(f"\n{title}")
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")
    return found


def data_folder(named: Path | None) -> Path:
    """The folder to evaluate on: the one named, else $AICROWD_DATASET_DIR, else a default."""
    if named:
        return named
    if os.getenv("AICROWD_DATASET_DIR"):
        return Path(os.environ["AICROWD_DATASET_DIR"])
    if PUBLIC_FOLDER.is_dir():
        return PUBLIC_FOLDER
    print("no --data-folder given: the demo's development set is used")
    return DEMO_FOLDER


def run_submission(folder: Path, log: Path) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Build the wrapper and call it as the evaluator does.

    Args:
        folder: the data folder.
        log: the file in which the ranker says where its time went and which images are damaged.

    Returns:
        The array; the seconds of the timed call, model loading included; the ranker's log,
        empty where it keeps none.

    Raises:
        UserError: what the ranker raised through the evaluator's channel.
    """
    log.unlink(missing_ok=True)
    os.environ["AICROWD_DATASET_DIR"] = str(folder)
    os.environ["VISUAL_SEARCH_RANKER_LOG"] = str(log)
    from my_submission.aicrowd_wrapper import AIcrowdWrapper

    try:
        wrapper = AIcrowdWrapper()
        started = time.perf_counter()
        ranks = wrapper.predict_product_ranks()
        seconds = time.perf_counter() - started
    except NameError as error:
        if error.name is not None:  # a misspelt variable, not the evaluator's channel
            raise
        raise UserError(f"the ranker gave up: {error}") from error
    return ranks, seconds, read_json(log) if log.exists() else {}


if __name__ == "__main__":
    run_command(main)
