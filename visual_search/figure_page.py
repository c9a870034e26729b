"""A page of tables and figures in one html file that opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("figure_page.html")
DPI = 110


@dataclass(frozen=True)
class Section:
    """A part of the page: facts, then a figure, then a table."""

    title: str
    note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    figure: Figure | None = None
    header: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page, atomically."""
    import jinja2

    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True
    ).get_template(TEMPLATE.name)
    shown = [(section, _picture(section.figure)) for section in sections]
    write_text(path, template.render(title=title, sections=shown))


def _picture(figure: Figure | None) -> str | None:
    if figure is None:
        return None
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
