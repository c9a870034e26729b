"""A page of tables and figures in one file."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from visual_search.figure_page import Section, write_page


def test_texts_are_shown_as_they_are_and_figures_are_inside(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1), facecolor="red")
    sections = [
        Section("<b>Lengths", "a & b", {"<i>": "1"}, figure),
        Section("Words", header=("word", "times"), rows=[("<script>alert(1)</script>", 7)]),
    ]
    write_page(tmp_path / "deep" / "page.html", "Queries <1>", sections)
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;</td><td>7" in page
    assert "<h1>Queries &lt;1&gt;</h1>" in page
    assert page.count("<img") == 1
    assert page.count("<table>") == 1
    found = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert found
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
        assert picture.size == (220, 110)
        assert np.array(picture.convert("RGB"))[0, 0].tolist() == [255, 0, 0]
