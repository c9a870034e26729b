"""Pictures that tell whether a threshold is right: the cosines, and the photos around it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from dataset.dataset_creation_steps.mean_cosines import BINS
from visual_search.downloads import Download, Downloader, DownloadLimits
from visual_search.files import written_atomically
from visual_search.images import UnreadableImage, decode_image

SIDE = 110
"""Pixels of a photo on the sheet."""

CAPTION = 14
COLUMNS = 6
KEPT, DROPPED = (40, 140, 60), (190, 50, 40)


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
        path: of the JPEG: green frames are kept, red ones are dropped.
    """
    values = means["mean_cosine"].to_numpy()
    order = np.argsort(values, kind="stable")
    border = int(np.searchsorted(values[order], threshold, side="right"))
    rows = [*order[border : border + count][::-1], *order[max(0, border - count) : border][::-1]]
    shown = means.take(pa.array(rows, pa.int64())).to_pylist()
    partners = [_partner(means, row) for row in shown]
    urls = [*(row["url"] for row in shown), *partners]
    photos = asyncio.run(_fetched(urls, download, size_hint))
    sheet = _sheet(
        [
            (row["mean_cosine"], row["mean_cosine"] > threshold, row["role"], photos[at], beside)
            for at, (row, beside) in enumerate(zip(shown, photos[len(shown) :], strict=True))
        ]
    )
    with written_atomically(path) as temporary:
        sheet.save(temporary, "JPEG", quality=88)


def _partner(means: pa.Table, row: dict[str, str]) -> str:
    """The most typical photo of the other side of the same product."""
    other = pc.and_(pc.equal(means["asin"], row["asin"]), pc.not_equal(means["role"], row["role"]))
    table = means.filter(other)
    return str(table["url"][int(np.argmax(table["mean_cosine"].to_numpy()))].as_py())


async def _fetched(urls: Sequence[str], download: DownloadLimits, size: int) -> list[Download]:
    from dataset.dataset_creation_steps.image_stages import fetch_photo

    async with Downloader(download) as downloader:
        return list(await asyncio.gather(*(fetch_photo(downloader, url, size) for url in urls)))


def _sheet(cells: Sequence[tuple[float, bool, str, Download, Download]]) -> Image.Image:
    """Photo and counterpart, caption below, frame by whether it is kept."""
    width, height = 2 * SIDE + 12, SIDE + CAPTION + 10
    rows = max(1, -(-len(cells) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (mean, kept, role, photo, beside) in enumerate(cells):
        x, y = number % COLUMNS * width, number // COLUMNS * height
        colour = KEPT if kept else DROPPED
        pen.rectangle((x + 2, y + 2, x + width - 3, y + height - 3), outline=colour, width=2)
        for place, download in enumerate((photo, beside)):
            sheet.paste(_thumbnail(download), (x + 6 + place * SIDE, y + 5))
        whose = "shop's" if role == "product" else "buyer's"
        pen.text((x + 6, y + SIDE + 5), f"{mean:.3f}  the {whose} (left)", fill=colour)
    return sheet


def _thumbnail(download: Download) -> Image.Image:
    square = Image.new("RGB", (SIDE, SIDE), (225, 225, 225))
    try:
        image = decode_image(download.data or b"", (SIDE, SIDE))
    except UnreadableImage:
        ImageDraw.Draw(square).text((4, SIDE // 2), (download.reason or "")[:18], fill="black")
        return square
    image.thumbnail((SIDE, SIDE))
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return square
