"""Running retrieval tasks: embed, score, draw, write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from visual_search.common.errors import UserError
from visual_search.common.files import write_csv, write_json, write_text
from visual_search.common.page import Section, markdown, write_page
from visual_search.evaluation.report import thumbnails
from visual_search.evaluation.scores import TaskScores, domain_rows, over_tasks, score_rows
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
    scores: list[TaskScores] = []
    sections: list[Section] = []
    for task in announced(tasks):
        model = task.embed(run, input_size, cache)
        one = task.score(model, steps)
        print(", ".join(f"{name} {value:.4f}" for name, value in one.means().items()))
        scores.append(one)
        sections += task.sections(one, model)
    facts: dict[str, Any] = {
        "run": str(run),
        "backbone": checkpoint.architecture.backbone,
        "dimension": dimension_of(checkpoint),
        "input_size": input_size or checkpoint.architecture.input_size,
        "weights": fingerprint(run),
        "ranking": format_steps(steps),
    }
    means = over_tasks(scores)
    of_tasks = {one.task.name: one.as_json() for one in scores}
    results = {**facts, "tasks": of_tasks, "means": means, "skipped": skipped}
    write_json(folder / "results.json", results)
    for one in scores:
        task = one.task
        queries = {"query": task.query_names, "label": task.query_labels, "domain": task.domains}
        table = pd.concat([pd.DataFrame(queries), one.values.round(6)], axis="columns")
        write_csv(folder / "scores" / f"{task.name}.csv", table)
    rows, domains = score_rows(scores, means), domain_rows(scores)
    write_text(folder / "results.md", f"# {run}\n\n{markdown(rows)}\n\n{markdown(domains)}\n")
    notes = [f"{name} was not run: {reason}" for name, reason in skipped.items()]
    top = Section(facts=facts, tables={"": rows, "Domains": domains}, notes=notes)
    write_page(folder / "report.html", f"{run}: retrieval", [top, *sections], thumbnails)
    if trackers:
        from accelerate import PartialState

        from visual_search.common.trackers import start_trackers

        PartialState()  # Accelerate's trackers ask it which process is the main one
        groups = means | {one.task.name: one.means() for one in scores}
        values = {f"{name}/{k}": value for name, of in groups.items() for k, value in of.items()}
        for tracker in start_trackers(trackers, folder, facts, 0):
            tracker.log(values, int(checkpoint.facts.get("step") or 0))
            tracker.finish()
    print(f"\n{markdown(rows)}")
    print(f"\ncompetition mean {means['competition']['score']:.4f}")
    print(f"report: {folder / 'report.html'}, numbers: {folder / 'results.json'}")


def ready_tasks(files: Sequence[Path], runs: Sequence[Path]) -> tuple[list[Task], dict[str, str]]:
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
        reasons = [what_is_missing(config), *map(kind.refusal, runs)]
        if reason := next(filter(None, reasons), None):
            skipped[name] = reason
            print(f"skipped {name}: {reason}", flush=True)
        else:
            tasks.append(kind.load(name, config))
    if not tasks:
        raise UserError("no task can be run; the lines above say what to prepare")
    return tasks, skipped


def announced(tasks: Sequence[Task]) -> Iterator[Task]:
    """The tasks, each with its title and what has to be known of it printed before."""
    for task in tasks:
        print("\n".join(filter(None, [f"\n{task.title}", task.note])), flush=True)
        yield task


def name_of_run(run: Path) -> str:
    """A folder's name for what belongs to a run: `runs/a/best` and `runs/b/best` differ."""
    parts = [part for part in run.parts if part not in ("runs", "..", ".", "/")]
    return re.sub(r"[^\w.-]", "_", "_".join(parts[-2:] or ["run"]))


def steps_of_run(run: Path) -> tuple[Step, ...]:
    """The re-ranking steps that the model's `model.json` names."""
    return exported_steps(load_checkpoint(run).path.parent)
