"""Score a model on a development set or on retrieval tasks, or compare two models.

`python -m visual_search.main_evaluate tasks --run runs/X --tasks config/evaluation/*.yml`
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import UserError, run_command
from visual_search.common.ranges import whole_number

if TYPE_CHECKING:
    from visual_search.data.dev_sets import DevSet
    from visual_search.evaluation.dev_set import EmbeddedDevSet
    from visual_search.evaluation.run_tasks import Asked

COMMANDS = ("score", "tasks", "compare", "tune-rerank")
PROGRAM = "python -m visual_search.main_evaluate"


def main() -> None:
    """Embed, or read the embeddings kept from last time; score, compare, or tune re-ranking."""
    options = build_parser().parse_args(with_command(sys.argv[1:]))
    options.run_command(options)


def with_command(arguments: Sequence[str]) -> list[str]:
    """Arguments as they are spelled now; where they are spelled as before, that is said.

    Once an option chose what is done now a sub-command does: `--compare A B`, `--tasks` and
    `--tune-rerank`; without any of them a development set was scored.
    """
    given = list(arguments)
    if not given or given[0] in (*COMMANDS, "-h", "--help"):
        return given
    if "--compare" in given:
        place = given.index("--compare")
        command = ["compare", *given[place + 1 : place + 3]]
        del given[place : place + 3]
    elif "--tasks" in given:
        command = ["tasks"]
    elif "--tune-rerank" in given:
        command = ["tune-rerank"]
        given.remove("--tune-rerank")
    else:
        command = ["score"]
    print(f"now spelled: {PROGRAM} {shlex.join([*command, *given])}", file=sys.stderr)
    return [*command, *given]


def _asked(options: argparse.Namespace) -> Asked:
    """Which tasks, and how; without one of texts, the packages of [text] are not needed."""
    from visual_search.evaluation.run_tasks import Asked
    from visual_search.evaluation.tasks import read_tasks

    tasks = read_tasks(options.tasks)
    if any(task.kind == "texts" for task in tasks.values()):
        import visual_search.text.tasks  # noqa: F401, it adds its kind of task
    return Asked(tasks, options.output, options.input_size, options.cache, options.rerank)


def _tasks(options: argparse.Namespace) -> None:
    from visual_search.evaluation.run_tasks import evaluate_tasks

    evaluate_tasks(options.run, _asked(options), options.trackers)


def _compare(options: argparse.Namespace) -> None:
    from visual_search.evaluation.compare import compare_runs

    compare_runs(options.a, options.b, _asked(options), options.metric)


def _dev_set(options: argparse.Namespace) -> DevSet:
    from visual_search.data.dev_sets import read_dev_set, read_dev_table

    if options.table:
        return read_dev_table(options.table, options.root, fold=options.fold)
    if options.root is not None or options.fold != -1:
        raise UserError("--root and --fold belong to --table: name one, or leave them out")
    return read_dev_set(options.data_folder)


def _embedded(options: argparse.Namespace, dev_set: DevSet) -> EmbeddedDevSet:
    from visual_search.evaluation.dev_set import embed_dev_set

    return embed_dev_set(options.run, dev_set, options.input_size, options.cache)


def _score(options: argparse.Namespace) -> None:
    """Print the mAP with the model's own re-ranking steps and without."""
    from visual_search.evaluation.dev_set import unmatched_sentence
    from visual_search.ranking.export import exported_steps
    from visual_search.ranking.rerank import format_steps

    model = _embedded(options, _dev_set(options))
    steps = exported_steps(model.description.parent)
    if sentence := unmatched_sentence(model.dev_set):
        print(sentence)
    print(f"mAP {model.score(()).mean():.4f}  {format_steps(())}")
    if steps:
        print(f"mAP {model.score(steps).mean():.4f}  {format_steps(steps)}")
        print("next: python local_evaluation.py --weights <export> runs the submission itself")
    elif model.dev_set.own is None:
        print("next: main_evaluate tune-rerank looks for re-ranking steps")
    else:
        print("next: python my_submission/to_torchscript.py <run> exports it for the ranker")


def _tune(options: argparse.Namespace) -> None:
    from visual_search.evaluation.rerank_tuning import tune

    dev_set = _dev_set(options)
    if dev_set.own is not None:
        raise UserError(
            "tune-rerank needs queries apart from the gallery, but each image of "
            f"{options.table} is ranked against all others; give --data-folder, or a table whose "
            "evaluation_status names queries"
        )
    data = options.table or options.data_folder
    tune(_embedded(options, dev_set), options.splits, options.seed, data)


def build_parser() -> argparse.ArgumentParser:
    """The sub-commands and their options."""
    model, embedding, task, place = (argparse.ArgumentParser(add_help=False) for _ in range(4))
    model.add_argument(
        "--run",
        type=Path,
        required=True,
        help="a run folder, or an export's folder (my_submission/weights)",
    )
    embedding.add_argument(
        "--input_size",
        type=whole_number(0, 4096),
        default=0,
        help="pixels; default: what the model was trained with",
    )
    embedding.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/embeddings"),
        help="folder in which embeddings are kept (%(default)s)",
    )
    task.add_argument(
        "--tasks",
        type=Path,
        nargs="+",
        required=True,
        metavar="YAML",
        help="config/evaluation/*.yml; one whose data is not there is skipped, and it says why",
    )
    task.add_argument(
        "--output",
        type=Path,
        help="folder of tables, report and pictures; default: runs/evaluation/<run>, or <A>_vs_<B>",
    )
    task.add_argument(
        "--rerank", action="store_true", help="apply the re-ranking steps of model.json"
    )
    either = place.add_mutually_exclusive_group()
    either.add_argument(
        "--data-folder",
        type=Path,
        default=Path("dataset/development_test_data"),
        help="holds gallery.csv, queries.csv and their images (%(default)s)",
    )
    either.add_argument(
        "--table",
        type=Path,
        help="instead, a dataset_info.csv or folds.csv, of which the held-out rows are ranked: "
        "queries against gallery where evaluation_status says so, else each image against all "
        "others",
    )
    place.add_argument(
        "--root", type=Path, help="folder that the table's paths are relative to; default: its own"
    )
    place.add_argument(
        "--fold",
        type=whole_number(-1),
        default=-1,
        help="of a folds.csv, the fold that was held out",
    )

    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Score a model, or compare two; embeddings are kept."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], words: str, *parents: Any
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=words, parents=parents)
        made.set_defaults(run_command=run)
        return made

    words = "mAP on one development set, with the re-ranking of model.json"
    command("score", _score, words, model, embedding, place)
    words = "every metric on retrieval tasks, with a report and pictures"
    command("tasks", _tasks, words, model, embedding, task).add_argument(
        "--trackers",
        nargs="+",
        default=[],
        choices=["tensorboard", "wandb", "mlflow"],
        help="where the scores go beside results.json; wandb stays offline",
    )
    words = "two models on retrieval tasks: differences, and a verdict"
    compare = command("compare", _compare, words, embedding, task)
    compare.add_argument("a", metavar="A", type=Path, help="a run folder, or an export's folder")
    compare.add_argument("b", metavar="B", type=Path, help="the other")
    compare.add_argument(
        "--metric", default="", help="default: what each task's competition reports"
    )
    words = (
        "choose re-ranking steps on half of the queries, report on the other half, and write them "
        "into the model's model.json if they beat plain cosine there"
    )
    tune = command("tune-rerank", _tune, words, model, embedding, place)
    tune.add_argument(
        "--splits",
        type=whole_number(1),
        default=3,
        help="of the queries, to see the spread (%(default)s)",
    )
    tune.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="of the first split (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
