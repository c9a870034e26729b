"""Queries of a task between texts and photos as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.contact_sheet import (
    LETTERS_IN_A_LINE,
    MOST_IN_A_ROW,
    Cell,
    write_contact_sheets,
)
from visual_search.task_pictures import EXPECTED, QUERY, RIGHT, WRONG

if TYPE_CHECKING:
    from visual_search.text_tasks import EmbeddedTextTask


def write_text_queries(
    file: Path, queries: Sequence[int], captions: Sequence[str], models: Sequence[EmbeddedTextTask]
) -> None:
    """A row for each query, where texts ask; else a cell for each photo.

    Args:
        file: ends in .jpg.
        queries: to show, in this order.
        captions: of each.
        models: on the same task; with two, the results of the first come first.
    """
    if not queries:
        return
    if models[0].task.asks_with_texts:
        rows = _photos_found(queries, captions, models)
    else:
        rows = _names_given(queries, captions, models)
    write_contact_sheets(file, rows, most_pages=1)


def _photos_found(
    queries: Sequence[int], captions: Sequence[str], models: Sequence[EmbeddedTextTask]
) -> list[list[Cell]]:
    """A right photo over the text, then what each model found."""
    task = models[0].task
    shown = (MOST_IN_A_ROW - 1) // len(models)
    found = [model.first(queries, shown) for model in models]
    rows = []
    for place, (query, caption) in enumerate(zip(queries, captions, strict=True)):
        right = set(task.right[query].tolist())
        asked = task.table.paths[int(task.right[query][0])]
        cells = [Cell(asked, f"{_short(task.query_names[query])}\n{caption}", EXPECTED)]
        for number, ranks in enumerate(found):
            letter = "AB"[number] if len(found) > 1 else ""
            for rank, row in enumerate(ranks[place].tolist(), 1):
                said = f"{letter}{rank}\n{_short(task.table.queries[row][0])}"
                cells.append(Cell(task.table.paths[row], said, RIGHT if row in right else WRONG))
        rows.append(cells)
    return rows


def _names_given(
    queries: Sequence[int], captions: Sequence[str], models: Sequence[EmbeddedTextTask]
) -> list[list[Cell]]:
    """The photo with its own text, and again over the first text that each model gave it."""
    task = models[0].task
    found = [model.first(queries, 1) for model in models]
    cells = []
    for place, (query, caption) in enumerate(zip(queries, captions, strict=True)):
        photo, right = task.table.paths[query], set(task.right[query].tolist())
        cells.append(Cell(photo, f"{_short(task.table.queries[query][0])}\n{caption}", QUERY))
        for number, ranks in enumerate(found):
            letter = f"{'AB'[number]}: " if len(found) > 1 else ""
            answer = int(ranks[place][0])
            colour = RIGHT if answer in right else WRONG
            cells.append(Cell(photo, _short(f"{letter}{task.relevance.texts[answer]}"), colour))
    width = MOST_IN_A_ROW // (1 + len(models)) * (1 + len(models))
    return [cells[start : start + width] for start in range(0, len(cells), width)]


def _short(text: str) -> str:
    """The beginning of a text that is too long for a line; sheets keep the end, as of paths."""
    return text if len(text) <= LETTERS_IN_A_LINE else text[: LETTERS_IN_A_LINE - 1] + "…"
