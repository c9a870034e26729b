"""A page of images that are alike: a group a row, first the image that the others are like."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
    groups: Mapping[str, Sequence[tuple[str, str]]],
    folder: Path | None = None,
) -> int:
    """Write the page, or remove an older one where there is no group; returns the rows drawn.

    Args:
        target: the html file.
        title: of the page.
        note: what the first image of a row is.
        kind: its frame.
        groups: for each such image those like it, each with how near it is, in words.
        folder: what the paths are relative to; None takes them as they are.
    """
    folder = folder or Path()
    rows = []
    for first, others in list(groups.items())[:MOST_ROWS]:
        tiles = [Tile(ImageItem(folder / first), first, kind)]
        for name, _ in others[:MOST_IN_A_ROW]:
            tiles.append(Tile(ImageItem(folder / name), name, "image"))
        words = "; ".join(words for _, words in others[:MOST_IN_A_ROW])
        rows.append(TileRow(os.path.basename(first), words, tiles))
    target.unlink(missing_ok=True)
    if rows:
        write_page(target, title, [Section(notes=[note], rows=rows)], thumbnails)
    return len(rows)
