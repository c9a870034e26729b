"""Running retrieval tasks: embed, score, draw, write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_search.common.errors import UserError
from visual_search.common.page import Section
from visual_search.evaluation.report import write_task_report
from visual_search.evaluation.scores import TaskScores, over_tasks
from visual_search.evaluation.tasks import TASK_KINDS, Task, read_tasks, what_is_missing
from visual_search.model.checkpoint import dimension_of, fingerprint, load_checkpoint
from visual_search.ranking.export import exported_steps
from visual_search.ranking.rerank import Step, format_steps

DEFAULT_OUTPUT = Path("runs/evaluation")


def evaluate_tasks(
    run: Path,
    files: Sequence[Path],
    output: Path | None = None,
    *,
    input_size: int = 0,
    cache: Path,
    rerank: bool = False,
    trackers: Sequence[str] = (),
) -> None:
    """Score a model on every task whose data is there, and write tables, report and pictures.

    Args:
        run: a run folder, a checkpoint, or an export's folder.
        files: of the tasks.
        output: folder of what is written; None: below `runs/evaluation`, named after the run.
        input_size: pixels; 0 takes the model's own.
        cache: where embeddings are kept.
        rerank: apply the steps of the model's `model.json`.
        trackers: that are given every mean as well, as training gives its own.

    Raises:
        UserError: for a missing or damaged model, a faulty task, and when no task has its data.
    """
    checkpoint = load_checkpoint(run)
    folder = output or DEFAULT_OUTPUT / name_of_run(run)
    steps = steps_of_run(run) if rerank else ()
    tasks, skipped = ready_tasks(files, [run])
    scores: dict[str, TaskScores] = {}
    sections: list[Section] = []
    for task in tasks:
        print(f"\n{task.title}", flush=True)
        if task.note:
            print(task.note, flush=True)
        model = task.embed(run, input_size, cache)
        scores[task.name] = one = task.score(model, steps)
        print(", ".join(f"{name} {value:.4f}" for name, value in one.means().items()))
        sections += task.sections(one, model, steps)
    facts: dict[str, Any] = {
        "run": str(run),
        "backbone": checkpoint.architecture.backbone,
        "dimension": dimension_of(checkpoint),
        "input_size": input_size or checkpoint.architecture.input_size,
        "weights": fingerprint(run),
        "ranking": format_steps(steps),
    }
    means = over_tasks(list(scores.values()))
    table = write_task_report(folder, list(scores.values()), means, skipped, facts, sections)
    if trackers:
        of_tasks = {name: one.means() for name, one in scores.items()}
        values = {
            f"{name}/{metric}": value
            for name, one in [*means.items(), *of_tasks.items()]
            for metric, value in one.items()
        }
        _track(trackers, folder, facts, values, int(checkpoint.facts.get("step") or 0))
    print(f"\n{table}")
    print(f"\ncompetition mean {means['competition']['score']:.4f}")
    print(f"report: {folder / 'report.html'}, numbers: {folder / 'results.json'}")


def _track(
    names: Sequence[str],
    folder: Path,
    facts: Mapping[str, Any],
    values: Mapping[str, float],
    step: int,
) -> None:
    from accelerate import PartialState

    from visual_search.common.trackers import start_trackers

    PartialState()  # Accelerate's trackers ask it which process is the main one
    for tracker in start_trackers(names, folder, facts, 0):
        tracker.log(dict(values), step)
        tracker.finish()


def ready_tasks(
    files: Sequence[Path], runs: Sequence[Path]
) -> tuple[list[Task[Any]], Mapping[str, str]]:
    """The tasks that can be run, loaded, and why each other one is skipped.

    Args:
        files: of the tasks.
        runs: what is to be scored; a task that one of them cannot take part in is skipped.

    Raises:
        UserError: for a faulty task, and when there is none to run.
    """
    tasks, skipped = [], {}
    for name, config in read_tasks(files).items():
        kind = TASK_KINDS[config.kind]
        reasons = (what_is_missing(config), *map(kind.refusal, runs))
        reason = next((reason for reason in reasons if reason), None)
        if reason is None:
            tasks.append(kind.load(name, config))
        else:
            skipped[name] = reason
            print(f"skipped {name}: {reason}", flush=True)
    if not tasks:
        raise UserError("no task can be run; the lines above say what to prepare")
    return tasks, skipped


def name_of_run(run: Path) -> str:
    """A folder's name for what belongs to a run: `runs/a/best` and `runs/b/best` differ."""
    parts = [part for part in run.parts if part not in ("runs", "..", ".", "/")]
    return re.sub(r"[^\w.-]", "_", "_".join(parts[-2:] or ["run"]))


def steps_of_run(run: Path) -> tuple[Step, ...]:
    """The re-ranking steps that the model's `model.json` names."""
    return exported_steps(load_checkpoint(run).path.parent)
