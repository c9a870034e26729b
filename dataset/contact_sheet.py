"""A page of images that are alike: a group a row, first the image that the others are like."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from visual_search.common.page import Section, Tile, TileRow, write_page
from visual_search.data.images import ImageItem
from visual_search.evaluation.report import thumbnails

MOST_ROWS, MOST_IN_A_ROW = 120, 8


def draw_groups(
    target: Path,
    title: str,
    note: str,
    kind: Literal["right", "query"],
    pairs: Iterable[tuple[str, str, str]],
    folder: Path | None = None,
) -> tuple[int, int]:
    """Write the page, or remove an older one where there is no pair.

    Args:
        target: the html file.
        title: of the page.
        note: what the first image of a row is.
        kind: its frame.
        pairs: such an image, one like it, and how near they are in words; in the page's order.
        folder: what the paths are relative to; None takes them as they are.

    Returns:
        The rows drawn, and all that there are.
    """
    folder = folder or Path()
    groups: dict[str, list[tuple[str, str]]] = {}
    for first, other, words in pairs:
        others = groups.setdefault(first, [])
        if len(groups) <= MOST_ROWS and len(others) < MOST_IN_A_ROW:
            others.append((other, words))
    rows = []
    for first, others in list(groups.items())[:MOST_ROWS]:
        tiles = [Tile(ImageItem(folder / first), first, kind)]
        tiles += [Tile(ImageItem(folder / other), other, "image") for other, _ in others]
        rows.append(TileRow(os.path.basename(first), "; ".join(w for _, w in others), tiles))
    target.unlink(missing_ok=True)
    if rows:
        write_page(target, title, [Section(notes=[note], rows=rows)], thumbnails)
    return len(rows), len(groups)
