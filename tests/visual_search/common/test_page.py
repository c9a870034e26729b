"""A page of tables and figures in one file."""

import base64
import io
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from visual_search.common.page import Section, Tile, TileRow, markdown, write_page


def test_texts_are_shown_as_they_are_and_figures_are_inside(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1), facecolor="red")
    rows = [("word", "times"), ("<script>alert(1)</script>", 7), ("**b<**", "**0.5**")]
    sections = [
        Section("<b>Lengths", ["a & b"], {"<i>": "1"}, pictures={"": figure}),
        Section("Words", tables={"": rows}, pictures={"gone": tmp_path / "gone.jpg"}),
        Section("Folded", folded={"more": [["none"]]}, bars={"<0": 0, "1": 4}),
        Section("Rows", rows=[TileRow("x<y", "n&m", [Tile(1, 'a "b"', "right")])]),
    ]
    write_page(
        tmp_path / "deep" / "page.html",
        "Queries <1>",
        sections,
        lambda shown: dict.fromkeys(shown, "data:,"),
    )
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "<script>" not in page
    assert '&lt;script&gt;alert(1)&lt;/script&gt;</td><td class="number">7' in page
    assert '<td><b>b&lt;</b></td><td class="number"><b>0.5</b></td>' in page
    assert '<th>word</th><th class="number">times</th>' in page
    assert "<h1>Queries &lt;1&gt;</h1>" in page
    assert '<div style="height: 0.0%" title="&lt;0: 0">' in page
    assert ".i0 { background-image: url(data:,); }" in page
    assert '<div class="p i0 right" role="img" aria-label="right: a &#34;b&#34;"' in page
    assert page.count("<img") == 1
    assert page.count("<table>") == 2
    found = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert found
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
        assert picture.size == (220, 110)
        assert np.array(picture.convert("RGB"))[0, 0].tolist() == [255, 0, 0]


def test_a_bar_in_a_cell_makes_no_column_of_a_markdown_table() -> None:
    table = markdown([("task", "mAP"), ("query | photo", 0.5)])
    assert table == "| task | mAP |\n|---|---|\n| query \\| photo | 0.5 |"
