"""Comparing two runs on retrieval tasks, with tables, a report and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visual_search.comparison import (
    TaskComparison,
    compare,
    comparison_rows,
    most_changed,
    verdict,
)
from visual_search.files import write_json, write_text
from visual_search.page import Section, write_page
from visual_search.report import markdown
from visual_search.task_kinds import RankedTask, draw_changed, embed, score
from visual_search.task_pictures import QUERIES_SHOWN
from visual_search.task_run import DEFAULT_OUTPUT, name_of_run, ready_tasks, steps_of_run

CHANCE = (
    "An interval is wrong one time in twenty: of twenty tasks on which two models are equal, one "
    "looks decided. The verdict goes by the interval over products: photos of one product are no "
    "independent witnesses."
)


def compare_runs(
    a: Path,
    b: Path,
    files: Sequence[Path],
    output: Path | None = None,
    *,
    input_size: int = 0,
    cache: Path,
    rerank: bool = False,
    metric: str = "",
) -> list[TaskComparison]:
    """Compare two models on every task whose data is there.

    Args:
        a: a run folder, a checkpoint, or an export's folder.
        b: the other.
        files: of the tasks.
        output: folder of what is written; None: below `runs/evaluation`, named after both.
        input_size: pixels; 0 takes each model's own.
        cache: where embeddings are kept.
        rerank: apply the steps of each model's `model.json`.
        metric: see :func:`visual_search.comparison.compare`.

    Raises:
        UserError: see :func:`visual_search.task_run.evaluate_tasks`.
    """
    folder = output or DEFAULT_OUTPUT / f"{name_of_run(a)}_vs_{name_of_run(b)}"
    steps = [steps_of_run(run) if rerank else () for run in (a, b)]
    tasks, skipped = ready_tasks(files, (a, b))

    def of_task(task: RankedTask) -> TaskComparison:
        print(f"\n{task.title}", flush=True)
        models = [embed(run, task, input_size, cache) for run in (a, b)]
        one, other = (score(task, model, own) for model, own in zip(models, steps, strict=True))
        comparison = compare(one, other, metric)
        changed = most_changed(comparison, QUERIES_SHOWN)
        values = [scores.values["mAP@1000"] for scores in (one, other)]
        captions = [f"AP {values[0][q]:.3f} -> {values[1][q]:.3f}" for q in changed]
        draw_changed(folder / f"{task.name}_changed.jpg", changed, captions, models)
        return comparison

    comparisons = [of_task(task) for task in tasks]
    _write(folder, a, b, comparisons, [f"{k} was not run: {v}" for k, v in skipped.items()])
    print(f"\nA: {a}\nB: {b}\n\n{markdown(comparison_rows(comparisons))}")
    print(f"\n{verdict(comparisons)}")
    print(f"report: {folder / 'comparison.html'}, numbers: {folder / 'comparison.json'}")
    return comparisons


def _write(
    folder: Path, a: Path, b: Path, comparisons: Sequence[TaskComparison], remarks: Sequence[str]
) -> None:
    said, rows = verdict(comparisons), comparison_rows(comparisons)
    tasks = {one.a.task.name: one.as_json() for one in comparisons}
    write_json(
        folder / "comparison.json", {"A": str(a), "B": str(b), "verdict": said, "tasks": tasks}
    )
    write_text(
        folder / "comparison.md", f"# {said}\n\nA: {a}, B: {b}\n\n{markdown(rows)}\n\n{CHANCE}\n"
    )
    facts = {"A": a, "B": b}
    sections = [
        Section("", [CHANCE, *remarks], facts, tables={"": rows}),
        *(
            Section(
                one.a.task.title,
                [
                    "Blue: a query, cut to its box. A1, A2, A3: what A found; B1 … likewise. "
                    "Green: right. Red: wrong. Orange: would be right."
                ],
                pictures={
                    "The queries that changed most: first gains, then losses": folder
                    / f"{one.a.task.name}_changed.jpg"
                },
            )
            for one in comparisons
        ),
    ]
    write_page(folder / "comparison.html", said, sections)
