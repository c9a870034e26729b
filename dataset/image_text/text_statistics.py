"""Step 3: what the queries are like, as figures and tables on one page.

python dataset/image_text/text_statistics.py dataset/image_text_photos.pairs.parquet
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import run_command
from visual_search.common.page import Section, write_page

if TYPE_CHECKING:
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

    def __len__(self) -> int:
        """N-grams in memory."""
        return len(self._counts)


BLUE = "#3b74b9"
ORDERS = (1, 2, 3)
TOP = 25
BATCH_IMAGES = 10_000
LONGEST = {"characters": 300, "words": 40, "queries": 40}
"""Last bin of each histogram; what is longer counts there."""
QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}


@dataclass
class Statistics:
    """What was counted in a table of pairs."""

    images: int = 0
    queries: int = 0
    lengths: dict[str, Counter[int]] = field(
        default_factory=lambda: {name: Counter() for name in LONGEST}
    )
    """How many queries (images, for `queries`) have how many characters, words, queries."""
    ngrams: dict[int, TopNgrams] = field(
        default_factory=lambda: {order: TopNgrams(order) for order in ORDERS}
    )
    languages: Counter[str] = field(default_factory=Counter)
    images_of_text: Counter[int] = field(default_factory=Counter)
    """Different texts by the number of images they stand at."""
    words: int = 0
    different_words: int = 0

    def summary(self) -> dict[str, Any]:
        """The figures as numbers."""
        texts, alone = self.images_of_text.total(), self.images_of_text[1]
        return {
            "photos": self.images,
            "queries": self.queries,
            "different texts": texts,
            "texts at one photo only": alone,
            "texts at several photos": texts - alone,
            "queries whose text stands at several photos": self.queries - alone,
            "words": self.words,
            "different words": self.different_words,
            "languages": dict(self.languages.most_common()),
            "lengths": {name: quantiles(found) for name, found in self.lengths.items()},
            "ngrams": {
                str(order): {"counted too low by at most": found.error}
                | {"top": found.most_common(TOP)}
                for order, found in self.ngrams.items()
            },
        }


def count(pairs: Path) -> Statistics:
    """Read a table of pairs once, a few thousand images at a time.

    In memory stay 8 bytes for each query, each different word, and at most a million n-grams.
    """
    import numpy as np

    from dataset.dataset_creation_steps.snapshots import keys
    from visual_search.common.progress import progress_bar
    from visual_search.text.pairs import open_pairs

    found = Statistics()
    vocabulary, texts = set[str](), [np.zeros(0, np.uint64)]
    file, columns = open_pairs(pairs), ["queries", "texts", "language"]
    with progress_bar("counting", "image", total=file.metadata.num_rows) as bar:
        for batch in file.iter_batches(BATCH_IMAGES, columns=columns):
            bar.update(batch.num_rows)
            queries, cleaned, languages = (batch[name].to_pylist() for name in columns)
            raw = [query for row in queries for query in row]
            flat = [text for row in cleaned for text in row]
            found.images += len(queries)
            found.queries += len(raw)
            sizes = {
                "queries": map(len, queries),
                "characters": map(len, raw),
                "words": (len(query.split()) for query in raw),
            }
            for name, lengths in sizes.items():
                found.lengths[name].update(min(length, LONGEST[name]) for length in lengths)
            found.languages.update(language for row in languages for language in row)
            for top in found.ngrams.values():
                top.add(flat)
            said = [word for text in flat for word in text.split()]
            found.words += len(said)
            vocabulary.update(said)
            texts.append(keys(flat))
    found.different_words = len(vocabulary)
    _, times = np.unique(np.concatenate(texts), return_counts=True)
    found.images_of_text.update(times.tolist())
    return found


def quantiles(lengths: Counter[int]) -> dict[str, float]:
    """Mean and quantiles of a histogram: the least value that so many do not exceed."""
    import numpy as np

    if not lengths:
        return {"mean": 0.0}
    values, times = np.array(list(lengths.items())).T
    names, shares = zip(*QUANTILES.items(), strict=True)
    found = np.quantile(values, shares, weights=times, method="inverted_cdf")
    mean = float(np.average(values, weights=times))
    return {"mean": mean} | dict(zip(names, found.astype(float).tolist(), strict=True))


def shares(images_of_text: Counter[int]) -> list[tuple[str, int, int]]:
    """Images a text stands at, as ranges; different texts, and queries, that do."""
    rows = []
    for low, high in ((1, 1), (2, 2), (3, 5), (6, 10), (11, 100), (101, 1000), (1001, None)):
        inside = {n: t for n, t in images_of_text.items() if low <= n <= (high or n)}
        name = str(low) if low == high else f"{low} to {high}" if high else f"{low}…"
        rows.append((name, sum(inside.values()), sum(n * times for n, times in inside.items())))
    return rows


def write_statistics(path: Path, name: str, found: Statistics, summary: dict[str, Any]) -> None:
    """Write the html page of what was counted in the table `name`."""

    def listed(*rows: tuple[object, ...]) -> dict[str, list[tuple[object, ...]]]:
        return {"": [tuple(f"{v:,}" if isinstance(v, int) else v for v in row) for row in rows]}

    sections = [
        Section("In all", facts={k: f"{v:,}" for k, v in summary.items() if isinstance(v, int)}),
        Section(
            "Lengths", ["Of the queries as typed."], pictures={"": lengths_figure(found.lengths)}
        ),
    ]
    for order, top in found.ngrams.items():
        title = "Most frequent words" if order == 1 else f"Most frequent runs of {order} words"
        error = f" Counts are too low by at most {top.error:,}." if top.error else ""
        table = listed(("cleaned", "times"), *top.most_common(TOP))
        sections.append(Section(title, [f"Cleaned words.{error}"], tables=table))
    heading = ("images with the text", "different texts", "queries")
    sections += [
        Section("Languages", tables=listed(("", "queries"), *found.languages.most_common())),
        Section(
            "Duplicates",
            ["A text that stands at many images tells them less apart, and makes wrong negatives."],
            tables=listed(heading, *shares(found.images_of_text)),
        ),
    ]
    write_page(path, f"Queries of {name}", sections)


def lengths_figure(lengths: dict[str, Counter[int]]) -> Figure:
    """A histogram of each."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    titles = ("characters of a query", "words of a query", "queries of an image")
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, key, title in zip(figure.subplots(1, 3), LONGEST, titles, strict=True):
        axes.bar(list(lengths[key]), list(lengths[key].values()), width=1.0, color=BLUE)
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
    found = count(pairs)
    summary = found.summary()
    write_statistics(page, pairs.name, found, summary)
    write_json(page.with_suffix(".json"), summary)
    print(
        f"{page}: {found.images} images, {found.queries} queries, "
        f"{summary['different texts']} different texts, "
        f"{summary['different words']} different words"
    )
    print(f"next: python dataset/image_text/cluster_texts.py fit {pairs}")


if __name__ == "__main__":
    run_command(main)
