"""The hashes of the photos that a table lists: from its column `hash`, else from the photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.hashing import hash_photos
from visual_search.images import UnreadableImage
from visual_search.progress import progress_bar


@dataclass(frozen=True)
class PhotoHashes:
    """Hashes of a list of photos."""

    values: np.ndarray
    """`(n,)`, uint64; 0 where there is none."""
    unreadable: dict[int, str]
    """Of the photos without a hash: their place in the list, and why."""


def hashes_of_table(
    table: pd.DataFrame, file: Path, paths: Sequence[Path], label: str = "hashes"
) -> PhotoHashes:
    """The hash of each row's photo; only rows with an empty or no `hash` are read from disk.

    Args:
        table: as read from `file`.
        file: where it is from, for the errors.
        paths: of the rows' photos.
        label: what the progress bar says.

    Raises:
        UserError: with file and line of a cell that is not 16 hexadecimal digits.
    """
    values = np.zeros(len(paths), dtype=np.uint64)
    missing = np.ones(len(paths), dtype=bool)
    if "hash" in table.columns:
        cells = table["hash"].str.strip()
        missing = (cells == "").to_numpy()
        given = cells[~missing]
        values[~missing] = np.fromiter((int(cell, 16) for cell in given), np.uint64, len(given))
    rows = np.flatnonzero(missing)
    unreadable: dict[int, str] = {}
    answers = hash_photos(paths[row] for row in rows.tolist())
    bar = progress_bar(label, "img", iterable=answers, total=len(rows), shown=len(rows) > 0)
    for row, answer in zip(rows.tolist(), bar, strict=True):
        if isinstance(answer, UnreadableImage):
            unreadable[row] = str(answer)
        else:
            values[row] = answer
    return PhotoHashes(values, unreadable)
