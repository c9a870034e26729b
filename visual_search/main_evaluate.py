"""Score a model on a development set or on retrieval tasks, or compare two models.

`python -m visual_search.main_evaluate --run runs/X --tasks config/evaluation/*.yml`
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.errors import UserError, exit_with_sentence

if TYPE_CHECKING:
    from visual_search.embedded_dev_set import EmbeddedDevSet
    from visual_search.evaluate import DevSet

DATA_FOLDER = Path("dataset/development_test_data")


def main() -> None:
    """Embed, or read the embeddings kept from last time; score, compare, or tune re-ranking."""
    options = build_parser().parse_args()
    _refuse_what_does_not_fit(options)
    if options.compare:
        from visual_search.comparison_run import compare_runs

        one, other = options.compare
        compare_runs(
            one,
            other,
            options.tasks,
            options.output,
            input_size=options.input_size,
            cache=options.cache,
            rerank=options.rerank,
            metric=options.metric,
        )
    elif options.tasks:
        from visual_search.task_run import evaluate_tasks

        evaluate_tasks(
            options.run,
            options.tasks,
            options.output,
            input_size=options.input_size,
            cache=options.cache,
            rerank=options.rerank,
            trackers=options.trackers,
        )
    else:
        _one_dev_set(options)


def _one_dev_set(options: argparse.Namespace) -> None:
    from visual_search.embedded_dev_set import embed_dev_set
    from visual_search.steps_tuning import tune

    dev_set = _dev_set(options)
    if options.tune_rerank and dev_set.own is not None:
        raise UserError(
            "--tune-rerank needs queries apart from the gallery, but each photo of "
            f"{options.table} is ranked against all others; give --data-folder, or a table whose "
            "evaluation_status names queries"
        )
    model = embed_dev_set(options.run, dev_set, options.input_size, options.cache)
    if options.tune_rerank:
        tune(
            model, options.splits, options.seed, options.table or options.data_folder or DATA_FOLDER
        )
    else:
        score(model, options.index)


def _refuse_what_does_not_fit(options: argparse.Namespace) -> None:
    if options.splits < 1:
        raise UserError("--splits must be 1 or more")
    if options.run is None and not options.compare:
        raise UserError("name a model with --run, or two of them with --compare")
    if options.run is not None and options.compare:
        raise UserError("--compare names both models: leave --run out")
    if options.compare and not options.tasks:
        raise UserError("--compare needs tasks: --tasks config/evaluation/*.yml")
    if options.tune_rerank and (options.tasks or options.compare):
        raise UserError("--tune-rerank works on one development set: leave --tasks out")
    _refuse_what_would_be_ignored(options)


def _refuse_what_would_be_ignored(options: argparse.Namespace) -> None:
    """An option that does nothing misleads: what was asked for would not be what was done."""
    on_tasks, tuning = bool(options.tasks), options.tune_rerank
    one_set = "is of one development set: leave it out, or leave --tasks out"
    of_tasks = "is of retrieval tasks: add --tasks config/evaluation/*.yml, or leave it out"
    refused = [
        (on_tasks and options.data_folder is not None, f"--data-folder {one_set}"),
        (on_tasks and options.table is not None, f"--table {one_set}"),
        (on_tasks and options.index != "exact", f"--index {options.index} {one_set}"),
        (not on_tasks and options.rerank, f"--rerank {of_tasks}"),
        (not on_tasks and bool(options.metric), f"--metric {of_tasks}"),
        (not on_tasks and bool(options.trackers), f"--trackers {of_tasks}"),
        (not on_tasks and options.output is not None, f"--output {of_tasks}"),
        (
            bool(options.compare and options.trackers),
            "--trackers takes the scores of one model: leave it out, or name the model with --run "
            "in place of --compare",
        ),
        (
            bool(options.metric and not options.compare),
            "--metric is of --compare, every metric is reported otherwise: leave it out",
        ),
        (
            options.table is not None and options.data_folder is not None,
            "--table stands in place of --data-folder: leave one of them out",
        ),
        (
            options.table is None and (options.root is not None or options.fold != -1),
            "--root and --fold belong to --table: name one, or leave them out",
        ),
        (
            tuning and options.index != "exact",
            f"--index {options.index} does nothing with --tune-rerank: leave one of them out",
        ),
    ]
    for applies, sentence in refused:
        if applies:
            raise UserError(sentence)


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_evaluate",
        description="Score a model on a development set, on retrieval tasks (--tasks), or beside "
        "another (--compare); embeddings are kept for the next time.",
    )
    parser.add_argument(
        "--run", type=Path, help="a run folder, or an export's folder (my_submission/weights)"
    )
    parser.add_argument(
        "--input_size", type=int, default=0, help="pixels; default: what the model was trained with"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/embeddings"),
        help="folder in which embeddings are kept (%(default)s)",
    )
    _add_task_options(parser.add_argument_group("retrieval tasks"))
    _add_dev_set_options(parser.add_argument_group("one development set (without --tasks)"))
    return parser


def _add_task_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--tasks",
        type=Path,
        nargs="+",
        default=[],
        metavar="YAML",
        help="config/evaluation/*.yml; one whose data is not there is skipped, and it says why",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="two runs, instead of --run: differences with intervals, and a verdict",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of tables, report and pictures; default: runs/evaluation/<run>",
    )
    parser.add_argument(
        "--metric",
        default="",
        help="of --compare; default: what each task's competition reports",
    )
    parser.add_argument(
        "--rerank", action="store_true", help="apply the re-ranking steps of model.json"
    )
    parser.add_argument(
        "--trackers",
        nargs="+",
        default=[],
        choices=["tensorboard", "wandb", "mlflow"],
        help="where the scores go beside results.json; wandb stays offline",
    )


def _add_dev_set_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--data-folder",
        type=Path,
        help=f"holds gallery.csv, queries.csv and their photos ({DATA_FOLDER})",
    )
    parser.add_argument(
        "--table",
        type=Path,
        help="instead, a dataset_info.csv or folds.csv, of which the held-out rows are ranked: "
        "queries against gallery where evaluation_status says so, else each photo against all "
        "others",
    )
    parser.add_argument(
        "--root", type=Path, help="folder that the table's paths are relative to; default: its own"
    )
    parser.add_argument(
        "--fold", type=int, default=-1, help="of a folds.csv, the fold that was held out"
    )
    parser.add_argument(
        "--tune-rerank",
        action="store_true",
        help="choose re-ranking steps on half of the queries, report on the other half, and write "
        "them into the model's model.json if they beat plain cosine there",
    )
    parser.add_argument(
        "--splits", type=int, default=3, help="of the queries, to see the spread (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first split (%(default)s)")
    parser.add_argument(
        "--index",
        choices=["exact", "faiss"],
        default="exact",
        help="faiss: also score the approximate search for galleries past one machine's memory",
    )


def _dev_set(options: argparse.Namespace) -> DevSet:
    from visual_search.dev_tables import read_dev_table
    from visual_search.evaluate import read_dev_set

    if options.table:
        return read_dev_table(options.table, options.root, fold=options.fold)
    return read_dev_set(options.data_folder or DATA_FOLDER)


def score(model: EmbeddedDevSet, index: str = "exact") -> None:
    """Print the mAP with the model's own re-ranking steps and without."""
    from visual_search.export import exported_steps
    from visual_search.rerank import words

    steps = exported_steps(model.description.parent)
    print(f"mAP {model.score(()).mean():.4f}  {words(())}")
    if steps:
        print(f"mAP {model.score(steps).mean():.4f}  {words(steps)}")
    if index == "faiss":
        from visual_search.faiss_index import faiss_search

        print(f"mAP {model.score((), faiss_search).mean():.4f}  {words(())} by the faiss index")
    if steps:
        print("next: python local_evaluation.py --weights <export> runs the submission itself")
    elif model.dev_set.own is None:
        print("next: the same command with --tune-rerank looks for re-ranking steps")
    else:
        print("next: python my_submission/to_torchscript.py <run> exports it for the ranker")


if __name__ == "__main__":
    exit_with_sentence(main)
