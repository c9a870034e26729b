"""Images side by side in rows, each row one case to look at, as a JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from visual_search.common.files import written_atomically
from visual_search.common.processes import available_cores
from visual_search.data.image_files import UnreadableImage
from visual_search.data.images import Box, ImageItem, read_region

CELL, CAPTION, GAP = 150, 26, 4
"""Pixels: side of an image, height of the two lines below it, space between."""
MOST_IN_A_ROW = 8
MOST_ROWS = 120
LETTERS_IN_A_LINE = 24


@dataclass(frozen=True)
class Cell:
    """One image of a row."""

    path: Path
    caption: str
    colour: str
    """Of the frame: green, red, … by any name that PIL knows."""
    box: Box | None = None
    """What of the image is shown; None is all of it."""


def write_contact_sheet(path: Path, rows: Sequence[Sequence[Cell]]) -> int:
    """Write the first :data:`MOST_ROWS` rows as a picture; one of an earlier run goes anyway.

    Args:
        path: ends in .jpg.
        rows: at most :data:`MOST_IN_A_ROW` images of each are shown.

    Returns:
        How many rows are shown.
    """
    path.unlink(missing_ok=True)
    shown = rows[:MOST_ROWS]
    if shown:
        with written_atomically(path) as temporary:
            _sheet(shown).save(temporary, "JPEG", quality=85)
    return len(shown)


def _sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    columns = min(max(map(len, rows)), MOST_IN_A_ROW)
    width, height = CELL + GAP, CELL + CAPTION + GAP
    sheet = Image.new("RGB", (columns * width + GAP, len(rows) * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), caption_font()
    with ThreadPoolExecutor(available_cores()) as pool:
        thumbnails = [list(pool.map(_thumbnail, row[:MOST_IN_A_ROW])) for row in rows]
    for y, (row, pictures) in enumerate(zip(rows, thumbnails, strict=True)):
        for x, (cell, picture) in enumerate(zip(row, pictures, strict=False)):
            left, top = GAP + x * width, GAP + y * height
            frame = (left, top, left + CELL - 1, top + CELL - 1)
            pen.rectangle(frame, fill="gainsboro", outline=cell.colour, width=3)
            sheet.paste(
                picture,
                (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2),
            )
            lines = [line[-LETTERS_IN_A_LINE:] for line in cell.caption.split("\n")[:2]]
            text = "\n".join(lines)
            pen.multiline_text((left, top + CELL), text, fill="black", font=font, spacing=1)
    return sheet


@cache
def caption_font() -> ImageFont.FreeTypeFont:
    """A font with the letters of most languages: PIL's own has Latin ones alone."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 10)


def _thumbnail(cell: Cell) -> Image.Image:
    inner = CELL - 6
    try:
        picture = read_region(ImageItem(cell.path, cell.box), inner).image
    except UnreadableImage:
        return Image.new("RGB", (inner, inner), "black")
    picture.thumbnail((inner, inner))
    return picture
