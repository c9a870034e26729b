"""Running retrieval tasks: embed, score, draw, write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from visual_search.common.errors import UserError
from visual_search.common.files import write_csv, write_json, write_text
from visual_search.common.page import Section, markdown, write_page
from visual_search.evaluation.report import thumbnails
from visual_search.evaluation.scores import TaskScores, domain_rows, over_tasks, score_rows
from visual_search.evaluation.tasks import TASK_KINDS, Task, TaskConfig, what_is_missing
from visual_search.model.checkpoint import dimension_of, fingerprint, load_checkpoint
from visual_search.ranking.export import exported_steps
from visual_search.ranking.rerank import Step, format_steps

DEFAULT_OUTPUT = Path("runs/evaluation")


@dataclass(frozen=True)
class Asked:
    """Which tasks are run, and how.

    Args:
        tasks: by name (:func:`visual_search.evaluation.tasks.read_tasks`).
        output: folder of what is written; None: below `runs/evaluation`, named after the models.
        input_size: pixels; 0 takes each model's own.
        cache: where embeddings are kept.
        rerank: apply the steps of each model's `model.json`.
    """

    tasks: Mapping[str, TaskConfig]
    output: Path | None
    input_size: int
    cache: Path
    rerank: bool

    def steps_of(self, run: Path) -> tuple[Step, ...]:
        """What a model's answers are re-ranked by."""
        return exported_steps(load_checkpoint(run).path.parent) if self.rerank else ()

    def folder(self, *runs: Path) -> Path:
        """Of what is written of some models."""
        return self.output or DEFAULT_OUTPUT / "_vs_".join(map(name_of_run, runs))

    def ready(self, *runs: Path) -> tuple[list[Task], dict[str, str]]:
        """The tasks that all the models can take part in, and why each other one is skipped.

        Raises:
            UserError: for a table with a fault, and when there is no task to run.
        """
        tasks, skipped = [], {}
        for name, config in self.tasks.items():
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

    def embedded(self, task: Task, *runs: Path) -> list[Any]:
        """A task as each of the models sees it."""
        print("\n".join(filter(None, [f"\n{task.title}", task.note])), flush=True)
        return [task.embed(run, self.input_size, self.cache) for run in runs]


def evaluate_tasks(run: Path, asked: Asked, trackers: Sequence[str] = ()) -> None:
    """Score a model on every task whose data is there, and write tables, report and pictures.

    Args:
        run: a run folder, a checkpoint, or an export's folder.
        asked: the tasks.
        trackers: that are given every mean as well, as training gives its own.

    Raises:
        UserError: for a missing or damaged model, a faulty table, and when no task has its data.
    """
    checkpoint = load_checkpoint(run)
    folder, steps = asked.folder(run), asked.steps_of(run)
    tasks, skipped = asked.ready(run)
    scores: list[TaskScores] = []
    sections: list[Section] = []
    for task in tasks:
        (model,) = asked.embedded(task, run)
        one = task.score(model, steps)
        print(", ".join(f"{name} {value:.4f}" for name, value in one.means().items()))
        scores.append(one)
        sections += task.sections(one, model)
    facts: dict[str, Any] = {
        "run": str(run),
        "backbone": checkpoint.architecture.backbone,
        "dimension": dimension_of(checkpoint),
        "input_size": asked.input_size or checkpoint.architecture.input_size,
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


def name_of_run(run: Path) -> str:
    """A folder's name for what belongs to a run: `runs/a/best` and `runs/b/best` differ."""
    parts = [part for part in run.parts if part not in ("runs", "..", ".", "/")]
    return re.sub(r"[^\w.-]", "_", "_".join(parts[-2:] or ["run"]))
