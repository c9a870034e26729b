"""Whether a ranker's array would be accepted, and scored as it is meant."""

from __future__ import annotations

from typing import Any

import numpy as np

from visual_search.errors import UserError
from visual_search.metrics import MAX_PREDICTIONS


def check_ranks(ranks: Any, n_queries: int, n_gallery: int) -> None:
    """Refuse an array that the evaluator would refuse, or score wrongly without a word.

    Raises:
        UserError: for another type, dtype or shape, an index outside the gallery, a repeat.
    """
    if not isinstance(ranks, np.ndarray):
        raise UserError(f"the ranker returned {type(ranks).__name__}, not a numpy array")
    if not np.issubdtype(ranks.dtype, np.integer):
        raise UserError(f"the ranker's array has dtype {ranks.dtype}; it must be an integer type")
    if ranks.shape != (n_queries, MAX_PREDICTIONS):
        raise UserError(
            f"the ranker's array has shape {ranks.shape}; it must be {(n_queries, MAX_PREDICTIONS)}"
        )
    # A gallery of fewer photos is followed by indexes that name none, up to the full width.
    allowed = max(n_gallery, MAX_PREDICTIONS)
    for row, column in np.argwhere((ranks < 0) | (ranks >= allowed))[:1]:
        raise UserError(
            f"row {row} of the ranker's array names gallery row {ranks[row, column]}; "
            f"the gallery has rows 0 to {n_gallery - 1}"
        )
    for row, column in np.argwhere(ranks[:, :n_gallery] >= n_gallery)[:1]:
        raise UserError(
            f"row {row} of the ranker's array names gallery row {ranks[row, column]} in front of "
            f"photos of the gallery, which has rows 0 to {n_gallery - 1}"
        )
    in_order = np.sort(ranks, axis=1)
    repeats = np.flatnonzero((in_order[:, 1:] == in_order[:, :-1]).any(axis=1))
    if len(repeats):
        raise UserError(f"row {repeats[0]} of the ranker's array names a gallery row twice")
