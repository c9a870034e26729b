import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from visual_search.data.dev_sets import read_dev_set
from visual_search.data.images import ImageProblem
from visual_search.evaluation.dev_set import Evaluation
from visual_search.evaluation.metrics import average_precision
from visual_search.evaluation.report import write_report
from visual_search.ranking.rank import Ranking, fill_to_width


class Page(HTMLParser):
    """Rows of the report as lists of (css classes, title)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[set[str], str]]] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.links += [values[key] for key in ("src", "href") if key in values]
        classes = set(values.get("class", "").split())
        if "row" in classes:
            self.rows.append([])
        elif "p" in classes:
            self.rows[-1].append((classes, values["title"]))


def test_rows_are_worst_first_and_the_page_opens_offline(dev_folder: Path, tmp_path: Path) -> None:
    dev_set, rng = read_dev_set(dev_folder), np.random.default_rng(3)
    ranks = fill_to_width(np.stack([rng.permutation(10) for _ in range(10)]), 10)
    ranks[4, :10] = np.argsort(dev_set.gallery_products != dev_set.query_products[4], kind="stable")
    scores = average_precision(ranks, dev_set.gallery_products, dev_set.query_products)
    answer = Evaluation(Ranking(ranks, (ImageProblem("a<b>.jpg", "damaged"),)), scores)
    write_report(tmp_path / "r.html", "title & more", {"mAP": "0.5"}, dev_set, answer, 2)
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    for query, row in zip(np.argsort(scores, kind="stable"), page.rows, strict=True):
        assert dev_set.queries[query].path.name in row[0][1]
        assert len(row) == 12
        expected, product = row[11], dev_set.query_products[query]
        assert "expected" in expected[0]
        assert expected[1].endswith(f"product {product}")
        for index, (classes, title) in zip(ranks[query], row[1:11], strict=False):
            right = dev_set.gallery_products[index] == product
            assert ("right" in classes) == right
            assert dev_set.gallery[index].path.name in title
    for words in ("8 of the other 8", "first right at 1<", "title &amp; more", "a&lt;b&gt;.jpg"):
        assert words in text
    assert page.links == []
    assert "http" not in re.sub(r"base64,[^)]*", "", text)
    rule = r"\.(i\d+) \{ background-image: url\(data:image/jpeg;base64,([^)]*)"
    pictures = dict(re.findall(rule, text))
    frames = {"p", "query", "right", "expected"}
    assert pictures.keys() == {
        name for row in page.rows for found, _ in row for name in found - frames
    }
    sizes = {Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures.values()}
    assert sizes == {(128, 128)}  # the box is cut out
