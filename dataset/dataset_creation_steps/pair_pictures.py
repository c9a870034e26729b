"""Pictures that tell whether a threshold is right: the cosines, and the photos around it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.dataset_creation_steps.mean_cosines import BINS
from visual_search.contact_sheet import MOST_IN_A_ROW, Cell, write_contact_sheets
from visual_search.downloads import Download, Downloader, DownloadLimits
from visual_search.files import written_atomically

WIDTH = MOST_IN_A_ROW // 2 * 2
"""Photos in a row of the sheet: no pair is torn apart."""

OTHER_SIDE = {"product": "user", "user": "product"}
WHOSE = {"product": "shop's", "user": "buyer's"}


def draw_histogram(
    means: np.ndarray, pairs: Sequence[int], thresholds: Sequence[float], path: Path
) -> None:
    """How many pairs and how many photos have which cosine.

    Args:
        means: mean cosine of each photo.
        pairs: pairs by cosine, between the edges of :data:`BINS`.
        thresholds: drawn as lines.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.stairs(pairs, BINS, fill=True)
    left.set(title="pairs (photo of the shop x buyer's photo)", xlabel="cosine", ylabel="pairs")
    right.hist(means, bins=BINS)
    right.set(title="photos", xlabel="mean cosine over a photo's pairs", ylabel="photos")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        for threshold in thresholds:
            axes.axvline(threshold, color="crimson", linestyle="--", linewidth=1)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def draw_around(
    means: pa.Table,
    threshold: float,
    count: int,
    download: DownloadLimits,
    size_hint: int,
    path: Path,
) -> None:
    """The photos whose mean is next to a threshold, each beside a photo it was compared with.

    Args:
        means: asin, role, url, mean_cosine.
        threshold: of the mean cosine.
        count: photos above and photos below it.
        download: limits; the photos are fetched for the occasion.
        size_hint: longest side to ask for, pixels.
        path: of the JPEG: green frames are kept, red ones are dropped; more pages where one is
            too small, see :func:`visual_search.contact_sheet.write_contact_sheets`.
    """
    values = means["mean_cosine"].to_numpy()
    order = np.argsort(values, kind="stable")
    border = int(np.searchsorted(values[order], threshold, side="right"))
    sides = [order[border : border + count][::-1], order[max(0, border - count) : border][::-1]]
    shown = means.take(pa.array(np.concatenate(sides), pa.int64())).to_pylist()
    partners = typical_partners(means, shown)
    pairs = zip((row["url"] for row in shown), partners, strict=True)
    urls = [url for pair in pairs for url in pair]
    photos = asyncio.run(_fetched(urls, download, size_hint))
    with tempfile.TemporaryDirectory() as folder:
        cells: list[Cell] = []
        for row, *pair in zip(shown, photos[::2], photos[1::2], strict=True):
            cells += _pair(row, row["mean_cosine"] > threshold, pair, Path(folder, str(len(cells))))
        # What is dropped begins a row of its own.
        parts = cells[: 2 * len(sides[0])], cells[2 * len(sides[0]) :]
        rows = [part[at : at + WIDTH] for part in parts for at in range(0, len(part), WIDTH)]
        write_contact_sheets(path, rows)


def typical_partners(means: pa.Table, shown: Sequence[dict[str, Any]]) -> list[str]:
    """Of each photo the most typical photo of the other side of the same product.

    Args:
        means: all photos: asin, role, url, mean_cosine.
        shown: some of its rows.

    Returns:
        Addresses, as many as `shown`.
    """
    asins = pa.array(sorted({row["asin"] for row in shown}), pa.string())
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in means.filter(pc.is_in(means["asin"], value_set=asins)).to_pylist():
        known = best.setdefault((row["asin"], row["role"]), row)
        if row["mean_cosine"] > known["mean_cosine"]:
            best[row["asin"], row["role"]] = row
    return [best[row["asin"], OTHER_SIDE[row["role"]]]["url"] for row in shown]


def _pair(
    row: dict[str, Any], kept: bool, photos: Sequence[Download], place: Path
) -> Iterator[Cell]:
    """A photo and its partner, whose files are put at `place`."""
    colour, verdict = ("green", "kept") if kept else ("red", "dropped")
    first = f"{row['mean_cosine']:.3f} {verdict}"
    captions = (
        f"{first}: {WHOSE[row['role']]}",
        f"beside: {WHOSE[OTHER_SIDE[row['role']]]}",
    )
    for number, (photo, caption) in enumerate(zip(photos, captions, strict=True)):
        file = place.with_name(f"{place.name}_{number}")
        if photo.data is not None:
            file.write_bytes(photo.data)
        yield Cell(file, f"{caption}\n{photo.reason}" if photo.reason else caption, colour)


async def _fetched(urls: Sequence[str], download: DownloadLimits, size: int) -> list[Download]:
    from dataset.dataset_creation_steps.image_stages import fetch_photo

    async with Downloader(download) as downloader:
        return list(await asyncio.gather(*(fetch_photo(downloader, url, size) for url in urls)))
