"""The one writer of HTML pages: every report is a list of sections in a file that opens offline."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visual_search.common.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html")
DPI = 110
NUMBER = re.compile(r"[-+±]?[\d.,]*\d(\s?(%|s|GB|px))?")

Rows = Sequence[Sequence[object]]
"""A table, its heading first; a cell `**so**` is bold, a number stands on the right."""


@dataclass(frozen=True)
class Tile:
    """A thumbnail in a row."""

    picture: Hashable
    """What the `thumbnails` of :func:`write_page` know it by."""
    title: str
    """Shown while the pointer is over it."""
    kind: Literal["", "query", "right", "expected", "image"] = ""
    """Its frame: none (wrong), blue, green, green and dotted (it would have been right), none."""

    @property
    def spoken(self) -> str:
        """For screen readers, which see no frames."""
        return f"{self.kind or 'wrong'}: {self.title}"


@dataclass(frozen=True)
class TileRow:
    """Thumbnails side by side, with a heading such as the score, and a note below it."""

    heading: str
    note: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Section:
    """A part of a page; what is empty is not shown, the rest in the order of the fields."""

    title: str = ""
    notes: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    """Names and values."""
    bars: Mapping[str, int] = field(default_factory=dict)
    """A histogram: label and count of each bar."""
    bars_title: str = ""
    pictures: Mapping[str, Figure | Path] = field(default_factory=dict)
    """By heading: a figure, or a jpg or png file; a file that is not there is left out."""
    tables: Mapping[str, Rows] = field(default_factory=dict)
    """By heading, which may be empty."""
    folded: Mapping[str, Rows] = field(default_factory=dict)
    """Further tables, each behind its heading until that is clicked."""
    rows: Sequence[TileRow] = ()


def markdown(rows: Rows) -> str:
    """A table in Markdown, a bar in a cell escaped; it does not end its last line."""
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    head, *others = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *others])


def write_page(
    path: Path,
    title: str,
    sections: Sequence[Section],
    thumbnails: Callable[[Collection[Any]], Mapping[Any, str]] = lambda _: {},
) -> None:
    """Write the page, atomically. Whatever is text in it is shown as it stands, not as HTML.

    Args:
        path: the html file.
        title: its headline.
        sections: from top to bottom.
        thumbnails: makes data URIs of what the tiles show; however often one is shown, it is in
            the file once.
    """
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True
    )
    templates.tests["figure"] = lambda cell: bool(NUMBER.fullmatch(str(cell).strip("*")))
    template = templates.get_template(TEMPLATE.name)
    shown = [
        vars(section)
        | {"pictures": {k: uri for k, v in section.pictures.items() if (uri := _uri_of(v))}}
        for section in sections
    ]
    tiles = [tile for section in sections for row in section.rows for tile in row.tiles]
    uris = thumbnails(dict.fromkeys(tile.picture for tile in tiles))
    names = {picture: f"i{number}" for number, picture in enumerate(uris)}
    write_text(path, template.render(title=title, sections=shown, uris=uris, names=names))


def data_uri(data: bytes, kind: Literal["jpeg", "png"]) -> str:
    """An image file's bytes as the address of an image."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")


def _uri_of(picture: Figure | Path) -> str | None:
    if isinstance(picture, Path):
        kind: Literal["jpeg", "png"] = "png" if picture.suffix == ".png" else "jpeg"
        return data_uri(picture.read_bytes(), kind) if picture.is_file() else None
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=DPI)
    return data_uri(buffer.getvalue(), "png")
