"""Scores of retrieval tasks as files: json, csv, Markdown, HTML, TensorBoard, Weights & Biases."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.files import write_json, write_text, written_atomically
from visual_search.task_scores import TaskScores, over_tasks
from visual_search.trackers import Trackers

TEMPLATE = Path(__file__).with_name("task_report.html")
SHOWN = ("mAP@1000", "mP@5", "R@1", "R@5", "R@10", "R@100", "MAP@R", "R-precision", "GAP")


def write_scores(
    folder: Path,
    scores: Sequence[TaskScores],
    skipped: Mapping[str, str],
    facts: Mapping[str, Any],
    trackers: Sequence[str],
    step: int,
) -> str:
    """Write results.json, results.md, report.html, scores/<task>.csv and the trackers' records.

    Args:
        folder: pictures of its tasks, <task>_queries.jpg and <task>_classes.jpg, come into the
            report where they are there.
        scores: of the tasks that were run.
        skipped: why each other one was not.
        facts: of the model.
        trackers: see :class:`visual_search.trackers.Trackers`.
        step: of the training that the model is from.

    Returns:
        The table, in Markdown.
    """
    means = over_tasks(scores)
    tasks = {one.task.name: one.as_json() for one in scores}
    write_json(
        folder / "results.json",
        {**facts, "tasks": tasks, "means": means, "skipped": dict(skipped)},
    )
    for one in scores:
        _write_queries(folder / "scores" / f"{one.task.name}.csv", one)
    rows = score_rows(scores)
    write_text(
        folder / "results.md",
        f"# {facts['run']}\n\n{markdown(rows)}\n\n{markdown(domain_rows(scores))}\n",
    )
    _write_report(folder, scores, skipped, facts, rows)
    recorded = {f"{name}/{key}": value for name, one in means.items() for key, value in one.items()}
    for one in scores:
        recorded |= {f"{one.task.name}/{key}": value for key, value in one.all_means().items()}
    records = Trackers(trackers, folder, str(facts["run"]), dict(facts))
    records.log(recorded, step)
    records.close()
    return markdown(rows)


def score_rows(scores: Sequence[TaskScores]) -> list[list[str]]:
    """The table of tasks and of the means over them, heading first."""
    shown = [name for name in SHOWN if name != "GAP" or any(one.gap is not None for one in scores)]
    rows = [["task", "queries", "gallery", *shown]]
    for one in scores:
        means, metric = one.all_means(), one.metric
        cells = [_cell(means.get(name), name == metric) for name in shown]
        queries, gallery = int(one.scored.sum()), one.task.gallery_size
        rows.append([one.task.title, f"{queries:,}", f"{gallery:,}", *cells])
    if len(scores) > 1:
        means_over = over_tasks(scores)
        for name in ("tasks", "domains", "queries"):
            cells = [_cell(means_over[name].get(metric)) for metric in shown]
            rows.append([f"mean over {name}", "", "", *cells])
    return rows


def domain_rows(scores: Sequence[TaskScores]) -> list[list[str]]:
    """A row for each domain of each task, heading first."""
    shown = [name for name in SHOWN if name != "GAP"]
    rows = [["task", "domain", "queries", *shown]]
    for one in scores:
        for domain, means in one.domains().items():
            queries = int((one.scored & (one.task.domains == domain)).sum())
            cells = [_cell(means[name]) for name in shown]
            rows.append([one.task.title, str(domain), f"{queries:,}", *cells])
    return rows


def _cell(value: float | None, headline: bool = False) -> str:
    if value is None:
        return ""
    return f"**{value:.4f}**" if headline else f"{value:.4f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table in Markdown, the first being its heading."""
    head, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *others])


def _write_queries(file: Path, scores: TaskScores) -> None:
    """What each query reached."""
    task = scores.task
    columns = list(scores.values.values())
    with (
        written_atomically(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["query", "label", "domain", *scores.values])
        for query, name in enumerate(task.query_names):
            numbers = ["" if np.isnan(x[query]) else f"{x[query]:.6f}" for x in columns]
            label, domain = task.query_labels[query], task.domains[query]
            writer.writerow([name, label, domain, *numbers])


def _write_report(
    folder: Path,
    scores: Sequence[TaskScores],
    skipped: Mapping[str, str],
    facts: Mapping[str, Any],
    rows: Sequence[Sequence[str]],
) -> None:
    classes = {}
    for one in scores:
        names, sizes, means = one.classes()
        worst = np.argsort(means["mAP@1000"], kind="stable")[:20]
        classes[one.task.title] = [
            ["class", "queries", *means],
            *(
                [str(names[k]), str(sizes[k]), *(f"{m[k]:.3f}" for m in means.values())]
                for k in worst
            ),
        ]
    sections = [
        {
            "title": one.task.title,
            "pictures": {
                "The worst queries, the worst first": picture(folder, f"{one.task.name}_queries"),
                "The worst classes: some queries, each with its first result": picture(
                    folder, f"{one.task.name}_classes"
                ),
            },
            "tables": {"The worst classes": classes[one.task.title]},
            "note": "Blue: a query, cut to its box. Green: right. Red: wrong. Orange: would be "
            "right.",
        }
        for one in scores
    ]
    tables = {"Domains": domain_rows(scores)}
    lines = [f"{name} was not run: {reason}" for name, reason in skipped.items()]
    write_page(
        folder / "report.html", f"{facts['run']}: retrieval", facts, rows, sections, tables, lines
    )


def picture(folder: Path, name: str) -> str | None:
    """A contact sheet as a data URI, None where there is none."""
    file = folder / f"{name}.jpg"
    if not file.is_file():
        return None
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def write_page(
    file: Path,
    title: str,
    facts: Mapping[str, Any],
    rows: Sequence[Sequence[str]],
    sections: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Sequence[Sequence[str]]],
    lines: Sequence[str],
) -> None:
    """A page that opens offline: facts, a table, and a section with pictures for each task.

    Args:
        file: the html file.
        title: its headline.
        facts: names and values on top.
        rows: the table below them, heading first; `**bold**` cells are shown so.
        sections: each with a title, pictures (title to data URI), tables and a note.
        tables: further tables, by title.
        lines: remarks.
    """
    import jinja2

    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True
    ).get_template(TEMPLATE.name)
    html = template.render(
        title=title, facts=facts, rows=rows, sections=sections, tables=tables, lines=lines
    )
    write_text(file, html)
