"""Perceptual hashes of images, near-duplicates by them, and which of a group to keep.

The hash is `imagehash.phash`: the signs of the 8 x 8 lowest frequencies of the grey image, against
their median. Two images of which one is a resized, recompressed or slightly retouched copy differ
in few of the 64 bits. faiss compares all with all: a million hashes take some three minutes on two
cores, at any distance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from visual_search.common.processes import available_cores
from visual_search.common.progress import progress_bar
from visual_search.data.dataset_info import read_each
from visual_search.data.image_files import UnreadableImage, open_image, read_bytes
from visual_search.data.images import decode_image

BITS = 64
# Steps of grey between the darkest and the lightest pixel of what counts as one colour: the signs
# of its frequencies are noise. Tables of older versions hold the second value for a white image.
CONSTANT_RANGE = 2
CONSTANT_HASHES = np.array([0, 1 << (BITS - 1)], dtype=np.uint64)
# Hashes compared at once: 16,384 of them stay in a core's cache; 8 million results take 100 MB.
BLOCK_ROWS, BLOCK_COLUMNS = 512, 16_384


class TooManyPairs(Exception):
    """There are more pairs than were asked for; the search stopped at the first too many."""


Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Left rows, right rows and the bits in which their hashes differ, each `(pairs,)`, int64, in the
order of left, then right."""


def hash_and_size(data: bytes) -> tuple[str, tuple[int, int]]:
    """The hash of an image file's bytes, 16 hexadecimal digits, and its width and height.

    EXIF orientation is ignored, as everywhere; transparency lies on white.

    An image of one colour has the hash 0, which is near to nothing.

    Raises:
        UnreadableImage: with the reason, also for an image that is cut off.
    """
    import imagehash

    image, size = decode_image(data), open_image(data).size
    constant = np.ptp(np.asarray(image.convert("L"))) <= CONSTANT_RANGE
    return "0" * (BITS // 4) if constant else str(imagehash.phash(image)), size


def hashes_of_table(
    table: pd.DataFrame, file: Path, paths: Sequence[Path], label: str = "hashes"
) -> tuple[np.ndarray, dict[int, str]]:
    """The hash of each row's image; only rows with an empty or no `hash` are read from disk.

    Args:
        table: as read from `file`.
        file: where it is from, for the errors.
        paths: of the rows' images.
        label: what the progress bar says.

    Returns:
        `(n,)`, uint64, 0 where there is none; and of the images without a hash, by their place,
        why.

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
    wanted = (paths[row] for row in rows.tolist())
    answers = read_each(wanted, lambda path: hash_and_size(read_bytes(path))[0], available_cores())
    bar = progress_bar(label, "img", iterable=answers, total=len(rows), shown=len(rows) > 0)
    for row, answer in zip(rows.tolist(), bar, strict=True):
        if isinstance(answer, UnreadableImage):
            unreadable[row] = str(answer)
        else:
            values[row] = int(answer, 16)
    return values, unreadable


def pairs_between(
    first: np.ndarray,
    second: np.ndarray | None,
    radius: int,
    *,
    most: int = sys.maxsize,
    progress: bool = False,
) -> Pairs:
    """All pairs of a row of `first` and a row of `second` whose hashes differ in few bits.

    Args:
        first: `(n,)`, uint64.
        second: `(m,)`, uint64; None takes pairs within `first`, each once, the right row above.
        radius: 0..64, Hamming distance.
        most: pairs; memory holds a few times as many.
        progress: whether there is a progress bar.

    Raises:
        TooManyPairs: as soon as there are more than `most`.
    """
    if not 0 <= radius <= BITS:
        raise ValueError(f"the Hamming distance must be 0..{BITS}, not {radius}")
    import faiss

    left_rows = np.flatnonzero(~np.isin(first, CONSTANT_HASHES))
    right_rows = left_rows
    rows = columns = first[left_rows].view(np.uint8).reshape(-1, BITS // 8)
    if second is not None:
        right_rows = np.flatnonzero(~np.isin(second, CONSTANT_HASHES))
        columns = second[right_rows].view(np.uint8).reshape(-1, BITS // 8)
    found, count = [np.zeros((3, 0), np.int64)], 0
    starts = range(0, len(columns), BLOCK_COLUMNS)
    for start in progress_bar("near-duplicates", "step", iterable=starts, shown=progress):
        index = faiss.IndexBinaryFlat(BITS)
        index.add(columns[start : start + BLOCK_COLUMNS])
        # Of pairs within one array, those above the diagonal.
        last = len(rows) if second is not None else min(start + BLOCK_COLUMNS, len(rows))
        for row in range(0, last, BLOCK_ROWS):
            some = rows[row : min(row + BLOCK_ROWS, last)]
            limits, distance, right = index.range_search(some, radius + 1)
            limits = limits.astype(np.int64)
            left = np.repeat(np.arange(row, row + len(some)), limits[1:] - limits[:-1])
            block = np.stack([left, right + start, distance.astype(np.int64)])
            if second is None:
                block = block[:, block[0] < block[1]]
            count += block.shape[1]
            if count > most:
                raise TooManyPairs
            found.append(block)
    pairs = np.concatenate(found, axis=1)
    left, right, distance = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    return left_rows[left], right_rows[right], distance


def find_removals(
    hashes: np.ndarray,
    pixels: np.ndarray,
    groups: np.ndarray,
    radius: int,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Which of near-duplicates go: the best stays.

    The rule: images are looked at from the largest to the smallest, and in the order of the table
    where they are equally large. An image goes if its hash is within `radius` bits of one of its
    group that was kept, and is called a duplicate of the nearest of those. So whatever goes has a
    kept image that near: a chain of small differences removes nothing that is far from all others.

    Args:
        hashes: `(n,)`, uint64.
        pixels: `(n,)`, width x height of each image.
        groups: `(n,)`, int64; images are compared within a group: the class, or all one.
        radius: Hamming distance, 0..64.
        progress: whether there is a progress bar.

    Returns:
        `(3, removed)`, int64: the images that go, in the order of the table; the kept image
        nearest to each; the bits between the two hashes.
    """
    best_first = np.lexsort((np.arange(len(hashes)), -pixels, groups))
    best_first = best_first[~np.isin(hashes[best_first], CONSTANT_HASHES)]
    _, starts, sizes = np.unique(groups[best_first], return_index=True, return_counts=True)
    several = np.flatnonzero(sizes > 1)
    parts = [
        _within_group(hashes, best_first[starts[i] : starts[i] + sizes[i]], radius)
        for i in progress_bar("duplicates", "class", iterable=several, shown=progress)
    ]
    removals = np.concatenate([np.zeros((3, 0), np.int64), *parts], axis=1)
    return removals[:, np.argsort(removals[0], kind="stable")]


def _within_group(hashes: np.ndarray, members: np.ndarray, radius: int) -> np.ndarray:
    """Removed, duplicate of, distance: `(3, n)`; `members` come best first."""
    _, first, inverse = np.unique(hashes[members], return_index=True, return_inverse=True)
    best = np.sort(first)
    """Of each hash the best image, still best first: equal hashes need no comparing."""
    left, right, apart = pairs_between(hashes[members[best]], None, radius)
    nearest = np.arange(len(best))
    distance = np.zeros(len(best), dtype=np.int64)
    # By the worse of the two, then by what it would be called a duplicate of.
    for pair in np.lexsort((left, apart, right)).tolist():
        better, worse = left[pair], right[pair]
        if nearest[worse] == worse and nearest[better] == better:
            nearest[worse], distance[worse] = better, apart[pair]
    of_hash = np.searchsorted(best, first)[inverse]
    kept = best[nearest[of_hash]]
    gone = np.flatnonzero(kept != np.arange(len(members)))
    return np.stack([members[gone], members[kept[gone]], distance[of_hash[gone]]])
