"""Step 3: what the queries are like, as figures and tables on one page.

python dataset/image_text/text_statistics.py dataset/image_text_photos.pairs.parquet
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import print_next, run_command
from visual_search.common.page import Section, write_page

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


class TopNgrams:
    """Counts of n-grams, of which the rare are forgotten where there are too many.

    As of Misra and Gries (1982): where there are too many, the smallest count is taken off all of
    them. So a count is too small by :attr:`error` at the most, and never too large.
    """

    def __init__(self, n: int, capacity: int = 1_000_000, *, shorter: bool = False) -> None:
        """`capacity` n-grams are held, 150 bytes each.

        `shorter`: a text of fewer words counts as a whole, unless it is empty.
        """
        self.n, self.capacity, self.shorter = n, capacity, shorter
        self.error = 0
        self._counts: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        """Count the n-grams of some texts."""
        for text in texts:
            words = text.split()
            last = len(words) - self.n
            if last < 0 and words and self.shorter:
                last = 0
            self._counts.update(
                " ".join(words[start : start + self.n]) for start in range(last + 1)
            )
        while len(self._counts) > self.capacity:
            least = min(self._counts.values())
            self.error += least
            left = {gram: count - least for gram, count in self._counts.items() if count > least}
            self._counts = Counter(left)

    def most_common(self, k: int | None = None) -> list[tuple[str, int]]:
        """The k most frequent and their counts, most frequent first; equal ones by their text."""
        return sorted(self._counts.items(), key=lambda found: (-found[1], found[0]))[:k]


BLUE = "#3b74b9"
ORDERS = (1, 2, 3)
TOP = 25
BATCH_IMAGES = 10_000
LONGEST = {"characters": 300, "words": 40, "queries": 40}
"""Last bar of each histogram; what is longer counts there."""
QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
RANGES = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 100), (101, 1000), (1001, None))
"""Of the images that a text stands at."""

Lengths = dict[str, Counter[int]]
"""By a key of :data:`LONGEST`: how many there are of each length."""


def count(pairs: Path) -> tuple[dict[str, Any], Lengths]:
    """Read a table of pairs once, a few thousand images at a time: its figures, and its lengths.

    In memory stay 8 bytes for each query, each different word, and at most a million n-grams.
    """
    import numpy as np

    from dataset.dataset_creation_steps.snapshots import keys
    from visual_search.common.progress import progress_bar
    from visual_search.text.pairs import open_pairs

    file, columns = open_pairs(pairs), ["queries", "texts", "language"]
    lengths: Lengths = {name: Counter() for name in LONGEST}
    ngrams = {order: TopNgrams(order) for order in ORDERS}
    spoken, vocabulary, words = Counter[str](), set[str](), 0
    texts = [np.zeros(0, np.uint64)]
    with progress_bar("counting", "image", total=file.metadata.num_rows) as bar:
        for batch in file.iter_batches(BATCH_IMAGES, columns=columns):
            bar.update(batch.num_rows)
            queries, cleaned, languages = (batch[name].to_pylist() for name in columns)
            raw, flat = list(chain.from_iterable(queries)), list(chain.from_iterable(cleaned))
            lengths["queries"].update(map(len, queries))
            lengths["characters"].update(map(len, raw))
            lengths["words"].update(len(query.split()) for query in raw)
            spoken.update(chain.from_iterable(languages))
            for top in ngrams.values():
                top.add(flat)
            said = [word for text in flat for word in text.split()]
            words += len(said)
            vocabulary.update(said)
            texts.append(keys(flat))
    _, times = np.unique(np.concatenate(texts), return_counts=True)
    alone = int((times == 1).sum())
    summary = {
        "photos": lengths["queries"].total(),
        "queries": len(np.concatenate(texts)),
        "different texts": len(times),
        "texts at one photo only": alone,
        "texts at several photos": len(times) - alone,
        "queries whose text stands at several photos": int(times.sum()) - alone,
        "words": words,
        "different words": len(vocabulary),
        "languages": dict(spoken.most_common()),
        "lengths": {name: _quantiles(found) for name, found in lengths.items()},
        "duplicates": [_duplicates(times, low, high) for low, high in RANGES],
        "ngrams": {
            str(order): {"counted too low by at most": top.error, "top": top.most_common(TOP)}
            for order, top in ngrams.items()
        },
    }
    return summary, lengths


def _quantiles(lengths: Counter[int]) -> dict[str, float]:
    """Mean and quantiles: the least length that so many do not exceed."""
    import numpy as np

    if not lengths:
        return {"mean": 0.0}
    values, times = list(lengths), list(lengths.values())
    shares = list(QUANTILES.values())
    found = np.quantile(values, shares, weights=times, method="inverted_cdf").astype(float)
    mean = float(np.average(values, weights=times))
    return {"mean": mean, **dict(zip(QUANTILES, found.tolist(), strict=True))}


def _duplicates(times: np.ndarray, low: int, high: int | None) -> tuple[str, int, int]:
    """A range of images a text stands at; different texts, and queries, that do."""
    inside = times[(times >= low) & (times <= (high or times.max(initial=0)))]
    name = str(low) if low == high else f"{low} to {high}" if high else f"{low}…"
    return name, len(inside), int(inside.sum())


def write_statistics(path: Path, name: str, summary: dict[str, Any], lengths: Lengths) -> None:
    """Write the html page of what was counted in the table `name`."""

    def listed(*rows: Sequence[object]) -> dict[str, list[list[object]]]:
        return {"": [[f"{v:,}" if isinstance(v, int) else v for v in row] for row in rows]}

    sections = [
        Section("In all", facts={k: f"{v:,}" for k, v in summary.items() if isinstance(v, int)}),
        Section("Lengths", ["Of the queries as typed."], pictures={"": lengths_figure(lengths)}),
    ]
    for order, found in summary["ngrams"].items():
        title = "Most frequent words" if order == "1" else f"Most frequent runs of {order} words"
        low = found["counted too low by at most"]
        error = f" Counts are too low by at most {low:,}." if low else ""
        table = listed(("cleaned", "times"), *found["top"])
        sections.append(Section(title, [f"Cleaned words.{error}"], tables=table))
    heading = ("images with the text", "different texts", "queries")
    sections += [
        Section("Languages", tables=listed(("", "queries"), *summary["languages"].items())),
        Section(
            "Duplicates",
            ["A text that stands at many images tells them less apart, and makes wrong negatives."],
            tables=listed(heading, *summary["duplicates"]),
        ),
    ]
    write_page(path, f"Queries of {name}", sections)


def lengths_figure(lengths: Lengths) -> Figure:
    """A histogram of each."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    titles = ("characters of a query", "words of a query", "queries of an image")
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, key, title in zip(figure.subplots(1, 3), LONGEST, titles, strict=True):
        bars = Counter[int]()
        for length, times in lengths[key].items():
            bars[min(length, LONGEST[key])] += times
        axes.bar(list(bars), list(bars.values()), width=1.0, color=BLUE)
        axes.set(xlabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, axis="y")
    return figure


def main() -> None:
    """Count and write the page."""
    parser = argparse.ArgumentParser(
        prog="text_statistics.py",
        description="Count lengths, n-grams, languages and duplicates of a table of pairs; write "
        "them as a page with figures (html) and as json.",
    )
    parser.add_argument("pairs", type=Path, help="X.pairs.parquet of text_cleaning.py")
    text = "the page (default: X.statistics.html; and .json beside it)"
    parser.add_argument("--output", type=Path, help=text)
    arguments = parser.parse_args()
    from visual_search.common.files import write_json

    pairs: Path = arguments.pairs
    stem = pairs.name.removesuffix(".parquet").removesuffix(".pairs")
    page: Path = arguments.output or pairs.with_name(f"{stem}.statistics.html")
    summary, lengths = count(pairs)
    write_statistics(page, pairs.name, summary, lengths)
    write_json(page.with_suffix(".json"), summary)
    print(
        f"{page}: {summary['photos']} images, {summary['queries']} queries, "
        f"{summary['different texts']} different texts, "
        f"{summary['different words']} different words"
    )
    print_next("dataset/image_text/cluster_texts.py", "fit", pairs)


if __name__ == "__main__":
    run_command(main)
